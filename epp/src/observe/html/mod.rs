//! The status page: a [`StatusView`] as HTML that needs nothing from anywhere else.
//!
//! It is written for somebody who was woken up: problems come first, then each pool, then the latest
//! picks with every scorer's value. The server renders every part; a script fetches the parts once
//! a second and swaps those that changed, and without scripts the page reloads itself. Names come
//! from pods, files and clients, so everything but the markup itself goes through one escaping
//! function.

mod parts;
mod text;

use std::fmt::Write as _;

use self::parts::{config, decisions, pool, problems, traffic};
use self::text::{Escaped, duration};
use super::status::StatusView;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The whole page.
pub fn page(view: &StatusView) -> String {
    let mut html = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Pointsman</title>\
         <noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript><style>",
    );
    html.push_str(STYLE);
    html.push_str("</style></head><body><header><h1>Pointsman</h1>");
    let build = &view.build;
    // Writing to a string cannot fail.
    let _ = write!(
        html,
        "<span class=\"soft\">version {} ({})</span>\
         <span class=\"soft\">JSON: <a href=\"/debug/status\">status</a>, \
         <a href=\"/debug/decisions\">decisions</a>, \
         <a href=\"/debug/plugins/state\">plugins</a>, <a href=\"/metrics\">metrics</a></span>\
         <span id=\"link\" role=\"status\" class=\"soft\"></span></header><main>",
        Escaped(build.version),
        Escaped(build.commit),
    );
    html.push_str(&sections(view));
    html.push_str("</main><script>");
    html.push_str(SCRIPT);
    html.push_str("</script></body></html>\n");
    html
}

/// The parts that change, each a `section` with an id.
pub fn sections(view: &StatusView) -> String {
    let mut html = String::new();
    problems(view, &mut html);
    for (number, one) in view.pools.iter().enumerate() {
        pool(number, one, &mut html);
    }
    decisions(view, &mut html);
    traffic(view, &mut html);
    config(view, &mut html);
    let _ = write!(
        html,
        "<section id=\"uptime\"><p class=\"soft\">up {}</p></section>",
        duration(view.uptime_ms)
    );
    html
}

#[cfg(test)]
mod tests;
