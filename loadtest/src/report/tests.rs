//! What a page holds, and what it must never hold.

use super::*;

const EVIL: &str = "<script>alert('x')</script>\"&";

fn evil() -> String {
    EVIL.to_owned()
}

fn page() -> Page {
    let table = Table {
        caption: evil(),
        columns: vec![evil(), "p50".to_owned()],
        rows: vec![vec![evil(), evil()]],
    };
    let plot = Plot {
        title: evil(),
        x: Axis::log(evil()),
        y: Axis::linear(evil()),
        series: vec![
            Series::new(
                evil(),
                vec![(1.0, 0.0), (10.0, 5.0), (0.0, 7.0), (f64::NAN, 1.0)],
            ),
            Series::new("bound", vec![(1.0, 1.0), (100.0, 9.0)]).reference(),
        ],
    };
    let bars = Bars {
        title: evil(),
        rows: [(2.0, "2"), (0.0, "0"), (f64::NAN, EVIL)]
            .map(|(value, shown)| Bar {
                name: evil(),
                value,
                shown: shown.to_owned(),
            })
            .to_vec(),
    };
    Page {
        title: evil(),
        subtitle: evil(),
        sections: vec![Section {
            heading: evil(),
            parts: vec![
                Part::Text(evil()),
                Part::Plot(plot),
                Part::Bars(bars),
                Part::Table(table),
                Part::Facts(vec![(evil(), evil())]),
            ],
        }],
    }
}

#[test]
fn no_text_becomes_markup() {
    let html = page().to_html();
    assert!(!html.contains("<script"), "{html}");
    assert!(!html.contains("alert('x')"));
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"));
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let html = page().to_html();
    for word in ["http:", "https:", "src=", "url(", "@import", "<link"] {
        assert!(!html.contains(word), "{word}");
    }
}

#[test]
fn every_element_is_closed() {
    let html = page().to_html();
    for name in [
        "section", "figure", "div", "table", "tbody", "tr", "td", "svg", "g", "ul", "li", "dl",
        "dd", "title", "text",
    ] {
        let opened =
            html.matches(&format!("<{name}>")).count() + html.matches(&format!("<{name} ")).count();
        assert_eq!(
            opened,
            html.matches(&format!("</{name}>")).count(),
            "{name}"
        );
    }
}

#[test]
fn points_without_a_place_are_left_out() {
    let html = page().to_html();
    assert_eq!(html.matches("<circle").count(), 2);
    assert_eq!(html.matches("<polyline").count(), 2);
    assert!(html.contains("class=\"s1 reference\""));
    assert!(!html.contains("NaN"));
}

#[test]
fn numbers_have_three_digits_and_a_unit() {
    let shown = [0.0, 0.25, 1.0, 12.5, 340.0, 9_999.0, 12_345.0, 1.5e6, -2.0].map(text::number);
    assert_eq!(
        shown,
        [
            "0", "0.25", "1", "12.5", "340", "9999", "12.3k", "1.5M", "-2"
        ]
    );
}
