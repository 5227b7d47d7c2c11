//! The metrics port: `/metrics` in Prometheus' text format and `/healthz`, over plain HTTP.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::metrics::Metrics;

/// How often recorded histogram values are folded into their buckets between scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Appends to the page what is read off other parts at the moment of a scrape.
pub type Appendix = Arc<dyn Fn(&mut String) + Send + Sync>;

/// Serves until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    appendix: Appendix,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = router(Arc::clone(&metrics), appendix);
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(shutdown)
        .into_future();
    tokio::select! {
        ended = server => ended,
        never = upkeep(metrics) => match never {},
    }
}

fn router(metrics: Arc<Metrics>, appendix: Appendix) -> Router {
    Router::new()
        .route("/metrics", get(page))
        .route("/healthz", get(|| async { "ok" }))
        .with_state((metrics, appendix))
}

async fn page(State((metrics, appendix)): State<(Arc<Metrics>, Appendix)>) -> impl IntoResponse {
    let mut page = metrics.render();
    appendix(&mut page);
    ([(CONTENT_TYPE, TEXT_FORMAT)], page)
}

async fn upkeep(metrics: Arc<Metrics>) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}
