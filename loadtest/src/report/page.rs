//! The page and its plain parts.

use std::fmt::Write as _;

use super::plot::figure;
use super::text::Escaped;
use super::{Bars, Page, Part, Section, Table};

const STYLE: &str = include_str!("style.css");

// Writing to a string cannot fail: results of `write!` are let go.

pub(super) fn html(page: &Page) -> String {
    let (title, subtitle) = (Escaped(&page.title), Escaped(&page.subtitle));
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\
         <header><h1>{title}</h1><p>{subtitle}</p></header><main>"
    );
    for part in &page.sections {
        section(part, &mut html);
    }
    html.push_str("</main></body></html>\n");
    html
}

/// Plots that follow one another share a row as far as the window is wide.
fn section(section: &Section, html: &mut String) {
    let _ = write!(html, "<section><h2>{}</h2>", Escaped(&section.heading));
    let mut in_grid = false;
    for part in &section.parts {
        let wants_grid = matches!(part, Part::Plot(_) | Part::Bars(_));
        if wants_grid != in_grid {
            html.push_str(if wants_grid {
                "<div class=\"plots\">"
            } else {
                "</div>"
            });
            in_grid = wants_grid;
        }
        match part {
            Part::Text(text) => {
                let _ = write!(html, "<p>{}</p>", Escaped(text));
            }
            Part::Facts(facts) => list(facts, html),
            Part::Table(part) => table(part, html),
            Part::Plot(part) => figure(part, html),
            Part::Bars(part) => bars(part, html),
        }
    }
    html.push_str(if in_grid {
        "</div></section>"
    } else {
        "</section>"
    });
}

fn list(facts: &[(String, String)], html: &mut String) {
    html.push_str("<dl>");
    for (name, value) in facts {
        let _ = write!(
            html,
            "<dt>{}</dt><dd>{}</dd>",
            Escaped(name),
            Escaped(value)
        );
    }
    html.push_str("</dl>");
}

fn table(table: &Table, html: &mut String) {
    let caption = Escaped(&table.caption);
    let _ = write!(
        html,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table><caption>{caption}</caption><thead><tr>"
    );
    for column in &table.columns {
        let _ = write!(html, "<th scope=\"col\">{}</th>", Escaped(column));
    }
    html.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        html.push_str("<tr>");
        for (index, cell) in row.iter().enumerate() {
            let cell = Escaped(cell);
            let _ = if index == 0 {
                write!(html, "<th scope=\"row\">{cell}</th>")
            } else {
                write!(html, "<td>{cell}</td>")
            };
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
}

fn bars(bars: &Bars, html: &mut String) {
    let most = bars.rows.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let title = Escaped(&bars.title);
    let _ = write!(
        html,
        "<figure><figcaption>{title}</figcaption><table class=\"bars\"><tbody>"
    );
    for bar in &bars.rows {
        let share = if most > 0.0 { bar.value / most } else { 0.0 };
        let percent = if share.is_finite() {
            share.clamp(0.0, 1.0) * 100.0
        } else {
            0.0
        };
        let (name, shown) = (Escaped(&bar.name), Escaped(&bar.shown));
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{name}</th><td><span style=\"width:{percent:.1}%\"></span></td><td>{shown}</td></tr>"
        );
    }
    html.push_str("</tbody></table></figure>");
}
