//! Plots as inline SVG.

use std::fmt::Write as _;

use super::Plot;
use super::axis::Range;
use super::text::{Escaped, number};

// The drawing, in units of the view box: the frame and the room for labels around it.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Colours of the style sheet; further series begin again.
const COLOURS: usize = 8;
/// Points of a series up to which each has a dot with its values, and up to which the dots are seen all the time: of
/// more of them only the one that is pointed at.
const DOTS_MAX: usize = 400;
const DOTS_SHOWN_MAX: usize = 70;

// Writing to a string cannot fail: results of `write!` are let go.

/// The plot with its title and legend, as a `figure`.
pub(super) fn figure(plot: &Plot, html: &mut String) {
    let title = Escaped(&plot.title);
    let _ = write!(html, "<figure><figcaption>{title}</figcaption>");
    legend(plot, html);
    let _ = write!(
        html,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
    );
    let frame = Frame::of(plot);
    frame.axes(plot, html);
    for (index, series) in plot.series.iter().enumerate() {
        let points = frame.places(&series.points);
        let class = match points.len() {
            _ if series.is_reference => " reference",
            0..=DOTS_SHOWN_MAX => "",
            _ => " dense",
        };
        let _ = write!(html, "<g class=\"s{}{class}\">", index % COLOURS);
        line(&points, html);
        if !series.is_reference && points.len() <= DOTS_MAX {
            dots(&series.name, &points, html);
        }
        html.push_str("</g>");
    }
    html.push_str("</svg></figure>");
}

fn legend(plot: &Plot, html: &mut String) {
    if plot.series.len() < 2 {
        return;
    }
    html.push_str("<ul class=\"legend\">");
    for (index, series) in plot.series.iter().enumerate() {
        let name = Escaped(&series.name);
        let _ = write!(html, "<li class=\"s{}\">{name}</li>", index % COLOURS);
    }
    html.push_str("</ul>");
}

/// Where values are in the drawing.
struct Frame {
    x: Range,
    y: Range,
}

/// A point in the drawing, and its values.
struct Placed {
    place: (f64, f64),
    value: (f64, f64),
}

impl Frame {
    fn of(plot: &Plot) -> Self {
        let points = || plot.series.iter().flat_map(|series| &series.points);
        Self {
            x: Range::over(plot.x.scale, points().map(|point| point.0)),
            y: Range::over(plot.y.scale, points().map(|point| point.1)),
        }
    }

    fn across(&self, value: f64) -> Option<f64> {
        Some(LEFT + self.x.place(value)? * (WIDTH - LEFT - RIGHT))
    }

    fn down(&self, value: f64) -> Option<f64> {
        Some(HEIGHT - BOTTOM - self.y.place(value)? * (HEIGHT - TOP - BOTTOM))
    }

    fn places(&self, points: &[(f64, f64)]) -> Vec<Placed> {
        let placed = |&value: &(f64, f64)| {
            let place = (self.across(value.0)?, self.down(value.1)?);
            Some(Placed { place, value })
        };
        points.iter().filter_map(placed).collect()
    }

    fn axes(&self, plot: &Plot, html: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        html.push_str("<g class=\"axes\">");
        for tick in self.x.ticks() {
            let (Some(x), shown) = (self.across(tick), number(tick)) else {
                continue;
            };
            let below = bottom + 16.0;
            let _ = write!(
                html,
                "<path d=\"M{x:.1} {TOP}V{bottom}\"/><text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{shown}</text>"
            );
        }
        for tick in self.y.ticks() {
            let (Some(y), shown) = (self.down(tick), number(tick)) else {
                continue;
            };
            let (beside, baseline) = (LEFT - 6.0, y + 4.0);
            let _ = write!(
                html,
                "<path d=\"M{LEFT} {y:.1}H{right}\"/><text x=\"{beside}\" y=\"{baseline:.1}\" text-anchor=\"end\">{shown}</text>"
            );
        }
        let (x_label, y_label) = (Escaped(&plot.x.label), Escaped(&plot.y.label));
        let (middle_x, middle_y) = (f64::midpoint(LEFT, right), f64::midpoint(TOP, bottom));
        let foot = HEIGHT - 8.0;
        let _ = write!(
            html,
            "<text x=\"{middle_x}\" y=\"{foot}\" text-anchor=\"middle\">{x_label}</text>\
             <text transform=\"translate(14 {middle_y}) rotate(-90)\" text-anchor=\"middle\">{y_label}</text></g>"
        );
    }
}

fn line(points: &[Placed], html: &mut String) {
    if points.is_empty() {
        return;
    }
    html.push_str("<polyline points=\"");
    for point in points {
        let _ = write!(html, "{:.1},{:.1} ", point.place.0, point.place.1);
    }
    html.push_str("\"/>");
}

fn dots(name: &str, points: &[Placed], html: &mut String) {
    let name = Escaped(name);
    for point in points {
        let (x, y) = (number(point.value.0), number(point.value.1));
        let _ = write!(
            html,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"><title>{name}: {x}, {y}</title></circle>",
            point.place.0, point.place.1
        );
    }
}
