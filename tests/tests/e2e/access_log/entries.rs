//! What the templates make Envoy say of each way in which a response ends. epp relies on every one of these fields.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use pointsman_loadtest::client::{ChatOptions, Message, Role};
use pointsman_loadtest::stack::{
    FilterPlace, MODEL_NAME, Stack, StackOptions, Template, UsageFilter, metric_sum,
};
use pointsman_tests::chat::Chat;
use pointsman_tests::eventually::eventually;
use pointsman_tests::log_sink::{LogSink, Tokens};
use pointsman_tests::upstream::{Answer, Upstream};
use pointsman_tests::witness::{Witness, epp_series};
use serde_json::json;

use super::{led_astray, on_each_envoy, rate_limited, read_to_done, whole_answer};

/// A stack whose log goes to the sink, and not to epp.
async fn stack(options: StackOptions, sink: &LogSink) -> Result<Stack> {
    Stack::start(options.log_receiver(sink.address())).await
}

#[tokio::test]
async fn a_streamed_answer() -> Result<()> {
    for template in [Template::OverrideHost, Template::OriginalDst] {
        on_each_envoy(async |options| {
            let (sink, (upstream, gate)) =
                (LogSink::start().await?, Upstream::held_streams().await?);
            let options = options
                .template(template)
                .renewal(Duration::from_millis(200));
            let stack = stack(options.endpoint(upstream.address()), &sink).await?;
            let chat = Chat::new().user("Count to two.").streaming();
            let request = stack.post_chat(&chat).header("x-request-id", "streamed");
            let mut response = request.send().await?;
            response.event().await?;
            let running = sink.periodic(2).await;
            ensure!(
                running.has_first_byte_time && running.body_bytes > 0,
                "{running:?}"
            );
            gate.open();
            read_to_done(response).await?;
            let end = sink.ends(1).await.remove(0);
            let address = Some(upstream.address().to_string());
            ensure!(end.code == Some(200) && end.attempts == 1, "{end:?}");
            ensure!(end.details == "via_upstream", "{end:?}");
            ensure!(end.has_first_byte_time && end.has_duration, "{end:?}");
            ensure!(end.picked == address && end.upstream == address, "{end:?}");
            if template == Template::OverrideHost {
                ensure!(end.served == address, "{end:?}");
            }
            let tokens = Tokens {
                prompt: Some(70),
                completion: Some(10),
                cached: Some(64),
            };
            ensure!(end.tokens == Some(tokens), "{end:?}");
            // The log that people read has one line, however often the other one was told.
            stack.logged("streamed").await?;
            let lines = stack.gateway().access_log()?;
            ensure!(lines.len() == 1 && lines[0].code == 200, "{lines:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// A worker sends the head when it has taken the request. What epp is told of is when the first token came.
#[tokio::test]
async fn the_first_token_is_not_the_head() -> Result<()> {
    on_each_envoy(async |options| {
        let options = options
            .workers(1)
            .worker_flag("--backend=sim")
            // A step of some milliseconds takes tenths of a second.
            .worker_flag("--sim-speedup=0.05");
        let stack = Stack::start(options).await?;
        let asked = ChatOptions {
            model: MODEL_NAME.to_owned(),
            max_tokens: 2,
            temperature: 0.0,
            timeout: Duration::from_mins(1),
        };
        let question = Message::new(Role::User, "When?");
        let answer = stack.chat().send(&[question], &asked).await?;
        let seen = eventually("the time to the first token", async || {
            let page = stack.epp().metrics().await?;
            let sum = metric_sum(&page, "llm_d_epp_request_ttft_seconds_sum");
            let sum = sum.filter(|sum| *sum > 0.0);
            sum.context("not told yet")
        })
        .await;
        let took = answer.ttft.as_secs_f64();
        ensure!(took > 0.05, "too fast to say anything: {took}");
        ensure!(seen > took * 0.5 && seen <= took, "{seen} of {took}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_whole_answer() -> Result<()> {
    on_each_envoy(async |options| {
        let (sink, upstream) = (
            LogSink::start().await?,
            Upstream::answering(whole_answer).await?,
        );
        let stack = stack(options.endpoint(upstream.address()), &sink).await?;
        let response = stack.post_chat(&Chat::new().user("Yes?")).send().await?;
        ensure!(response.status == 200, "status {}", response.status);
        response.json().await?;
        let end = sink.ends(1).await.remove(0);
        ensure!(end.code == Some(200), "{end:?}");
        let tokens = Tokens {
            prompt: Some(30),
            completion: Some(2),
            cached: None,
        };
        let counted = stack.envoy().usage_filter() == UsageFilter::AiProtocolManager;
        let seen = end.tokens.map(|seen| Tokens {
            cached: None,
            ..seen
        });
        ensure!(seen == counted.then_some(tokens), "{end:?}");
        Ok(())
    })
    .await
}

/// Two events of a message of Anthropic's API, and its end.
async fn anthropic(_request: pointsman_tests::upstream::Received) -> Answer {
    let event = |name: &str, data: serde_json::Value| {
        let text = format!("event: {name}\ndata: {data}\n\n");
        Ok::<_, std::convert::Infallible>(Frame::data(bytes::Bytes::from(text)))
    };
    let start = json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant",
        "model": "m", "content": [], "usage": {"input_tokens": 30, "cache_read_input_tokens": 16, "output_tokens": 1}}});
    let delta = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}});
    let frames = [
        event("message_start", start),
        event("message_delta", delta),
        event("message_stop", json!({"type": "message_stop"})),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let mut response = http::Response::new(BodyExt::boxed(body));
    let content_type = http::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert("content-type", content_type);
    Ok(response)
}

#[tokio::test]
async fn a_message_of_anthropics_api() -> Result<()> {
    on_each_envoy(async |options| {
        let (sink, upstream) = (
            LogSink::start().await?,
            Upstream::answering(anthropic).await?,
        );
        let stack = stack(options.endpoint(upstream.address()), &sink).await?;
        let body = json!({"model": "m", "max_tokens": 9, "stream": true,
            "messages": [{"role": "user", "content": "Hello."}]});
        let request = stack.client().post("/v1/messages").json(&body);
        let response = request.send().await?;
        ensure!(response.status == 200, "status {}", response.status);
        response.text().await?;
        let end = sink.ends(1).await.remove(0);
        let tokens = end.tokens.unwrap_or(Tokens {
            prompt: None,
            completion: None,
            cached: None,
        });
        ensure!(tokens.completion == Some(9), "{end:?}");
        ensure!(tokens.cached == Some(16), "{end:?}");
        // One filter says what the API says, the other one the whole of the prompt.
        ensure!(matches!(tokens.prompt, Some(30 | 46)), "{end:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_client_that_leaves() -> Result<()> {
    on_each_envoy(async |options| {
        let (sink, (upstream, _gate)) = (LogSink::start().await?, Upstream::held_streams().await?);
        let stack = stack(options.endpoint(upstream.address()), &sink).await?;
        let chat = Chat::new().user("Count to two.").streaming();
        let mut response = stack.post_chat(&chat).send().await?;
        response.event().await?;
        drop(response);
        let end = sink.ends(1).await.remove(0);
        ensure!(end.details == "downstream_remote_disconnect", "{end:?}");
        ensure!(end.has_first_byte_time && end.has_duration, "{end:?}");
        ensure!(
            end.upstream == Some(upstream.address().to_string()),
            "{end:?}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_endpoint_that_dies_mid_stream() -> Result<()> {
    on_each_envoy(async |options| {
        let (sink, (upstream, gate)) = (LogSink::start().await?, Upstream::held_streams().await?);
        let address = upstream.address().to_string();
        let stack = stack(options.endpoint(upstream.address()), &sink).await?;
        let chat = Chat::new().user("Count to two.").streaming();
        let mut response = stack.post_chat(&chat).send().await?;
        response.event().await?;
        gate.arrived(1).await;
        drop(upstream);
        ensure!(
            response.events().await.is_err(),
            "a cut stream has no proper end"
        );
        let end = sink.ends(1).await.remove(0);
        let details = "upstream_reset_after_response_started";
        ensure!(end.details.starts_with(details), "{end:?}");
        ensure!(end.upstream == Some(address) && end.has_duration, "{end:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_retry_to_the_next_of_the_list() -> Result<()> {
    on_each_envoy(async |options| {
        let sink = LogSink::start().await?;
        let (dead, alive) = (Upstream::echo().await?, Upstream::echo().await?);
        alive.pretend_waiting(100);
        let options = options.endpoint(dead.address()).endpoint(alive.address());
        let stack = stack(options.epp_flag("--fallback-endpoints=1"), &sink).await?;
        stack.epp_gauge_is(epp_series::MEAN_QUEUE, 50.0).await;
        dead.stop_accepting().await;
        let response = stack
            .post_chat(&Chat::new().user("Anybody?"))
            .send()
            .await?;
        ensure!(response.status == 200, "status {}", response.status);
        response.bytes().await?;
        let end = sink.ends(1).await.remove(0);
        let served = Some(alive.address().to_string());
        let picked = Some(format!("{},{}", dead.address(), alive.address()));
        ensure!(end.attempts == 2 && end.picked == picked, "{end:?}");
        ensure!(end.upstream == served && end.served == served, "{end:?}");
        Ok(())
    })
    .await
}

/// The answer is Envoy's own, and made after epp's pick.
#[tokio::test]
async fn a_refusal_by_envoy_after_the_pick() -> Result<()> {
    on_each_envoy(async |options| {
        let (sink, echo) = (LogSink::start().await?, Upstream::echo().await?);
        let options = rate_limited(options.endpoint(echo.address()));
        let stack = stack(options, &sink).await?;
        for status in [200, 429] {
            let response = stack.post_chat(&Chat::new().user("Me too.")).send().await?;
            ensure!(
                response.status == status,
                "{} not {status}",
                response.status
            );
            response.bytes().await?;
        }
        let end = sink.ends(2).await.remove(1);
        ensure!(end.code == Some(429) && end.attempts == 0, "{end:?}");
        ensure!(end.details == "local_rate_limited", "{end:?}");
        ensure!(end.picked == Some(echo.address().to_string()), "{end:?}");
        ensure!(echo.requests().len() == 1, "{:?}", echo.requests());
        Ok(())
    })
    .await
}

/// Envoy sends a request to whom epp picked even when its own health check finds that endpoint ill. So nobody being left
/// takes both: a pick that is no member, and no member that is healthy.
#[tokio::test]
async fn a_pick_that_leaves_envoy_nobody() -> Result<()> {
    on_each_envoy(async |options| {
        let (sink, echo) = (LogSink::start().await?, Upstream::echo().await?);
        let stack = stack(led_astray(options.endpoint(echo.address())), &sink).await?;
        echo.fall_ill();
        stack.gateway().until_health(echo.address(), false).await?;
        let response = stack
            .post_chat(&Chat::new().user("Anybody?"))
            .send()
            .await?;
        ensure!(response.status == 503, "status {}", response.status);
        drop(response);
        let end = sink.ends(1).await.remove(0);
        ensure!(end.details == "no_healthy_upstream", "{end:?}");
        ensure!(end.upstream.is_none(), "{end:?}");
        Ok(())
    })
    .await
}

/// A filter that a gateway has of its own must see the metadata that epp set; so the pick comes before it.
#[tokio::test]
async fn filters_behind_epp_see_the_pick() -> Result<()> {
    let (sink, echo) = (LogSink::start().await?, Upstream::echo().await?);
    let filter = json!({
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string":
                "function envoy_on_request(handle)\n\
                 local lb = handle:streamInfo():dynamicMetadata():get('envoy.lb')\n\
                 handle:headers():add('x-picked', lb['x-gateway-destination-endpoint'])\n\
                 end"},
        },
    });
    let options = StackOptions::new().workers(0).endpoint(echo.address());
    let stack = stack(options.filter(FilterPlace::AfterPick, filter), &sink).await?;
    let response = stack.post_chat(&Chat::new().user("Who?")).send().await?;
    ensure!(response.status == 200, "status {}", response.status);
    response.bytes().await?;
    let received = echo.only_request();
    let seen = received
        .headers
        .get("x-picked")
        .and_then(|value| value.to_str().ok());
    ensure!(seen == Some(&echo.address().to_string()), "{received:?}");
    Ok(())
}

/// Answers what no gateway can read as usage.
#[tokio::test]
async fn an_answer_without_usage_has_none() -> Result<()> {
    on_each_envoy(async |options| {
        let sink = LogSink::start().await?;
        let upstream = Upstream::answering(|_| async {
            Ok(http::Response::new(Full::from("plain text").boxed()))
        });
        let upstream = upstream.await?;
        let stack = stack(options.endpoint(upstream.address()), &sink).await?;
        let response = stack.post_chat(&Chat::new().user("Well?")).send().await?;
        ensure!(response.text().await? == "plain text", "another body");
        let end = sink.ends(1).await.remove(0);
        let counted = end
            .tokens
            .is_some_and(|tokens| tokens.prompt.or(tokens.completion).is_some());
        ensure!(!counted, "{end:?}");
        Ok(())
    })
    .await
}
