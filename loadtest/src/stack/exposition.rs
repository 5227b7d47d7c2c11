//! Reads one number off a Prometheus text page. For tests and readiness; epp has its own scanner for the hot path.

/// The sum of all series called `name`, whatever their labels; `None` where the page has none.
///
/// Takes `name` as a whole, so of a histogram ask for `…_count` or `…_sum`. Timestamps, which neither epp nor the
/// workers write, are not expected.
pub fn metric_sum(page: &str, name: &str) -> Option<f64> {
    page.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
        .reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_series_of_one_name() {
        let page = "# TYPE ready gauge\nready{pool=\"a b\"} 2\nready{pool=\"c\"} 1.5\nready_total 9\nload 4\n";
        assert_eq!(metric_sum(page, "ready"), Some(3.5));
        assert_eq!(metric_sum(page, "load"), Some(4.0));
        assert_eq!(metric_sum(page, "read"), None);
    }
}
