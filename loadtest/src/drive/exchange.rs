//! One request over the wire, with the times of what comes back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::prompt::{Form, Heard, Said};
use super::record::{ErrorClass, Failure, Record};
use crate::client::{AnswerStream, HttpClient, SERVED_BY, TlsFailure, beginning};
use crate::workload::PlannedRequest;
use crate::workload::tokens::Vocabulary;

/// The longest error body that is read.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Where requests go and how they are made.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) http: HttpClient,
    /// As in `http://127.0.0.1:8000` or `https://example.com`, without `/v1`.
    pub(crate) url: String,
    pub(crate) model: String,
    pub(crate) api_key: Option<String>,
    pub(crate) form: Form,
    pub(crate) vocabulary: Vocabulary,
    /// Ask for exactly the planned number of tokens, whatever the model would say, and accept nothing else.
    pub(crate) exact: bool,
    pub(crate) timeout: Duration,
}

/// What is to be sent.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) index: usize,
    pub(super) request: PlannedRequest,
    pub(super) intended: Duration,
    /// What was said before, and how many segments of the plan that is.
    pub(super) before: Option<(Arc<Said>, usize)>,
    /// Whether a follow-up needs what is said here.
    pub(super) is_followed: bool,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) record: Record,
    pub(super) said: Option<Arc<Said>>,
}

/// Makes the prompt, waits for the intended start, sends and reads to the end.
pub(super) async fn send(target: Arc<Target>, job: Job, began: Instant) -> Outcome {
    let before = job.before.as_ref();
    let before = before.map(|(said, segments)| (said.as_ref(), *segments));
    let mut said = Said::prompt(target.form, target.vocabulary, &job.request, before);
    let answer = job.request.answer;
    let body = said.body(&target.model, answer.tokens, target.exact);
    let intended = began + job.intended;
    sleep_until(intended).await;

    let mut exchange = Exchange::new(&job, began);
    let mut stream = AnswerStream::default();
    let whole = async {
        let body = body.map_err(|error| Failure::new(ErrorClass::Request, error.to_string()))?;
        exchange.run(&target, Bytes::from(body), &mut stream).await
    };
    // The time allowed counts from when it should have been sent, as all latencies do.
    let ended = timeout_at(intended + target.timeout, whole).await;
    let ended = ended.unwrap_or_else(|_| {
        let detail = format!("no whole answer within {:?}", target.timeout);
        Err(Failure::new(ErrorClass::Timeout, detail))
    });
    let ended = ended.and_then(|()| check_length(&target, answer.tokens, &stream));
    let record = exchange.finish(&job, &stream, ended.err());
    let said = job.is_followed.then(|| {
        let heard = record.is_ok().then_some(Heard {
            text: &stream.text,
            token_ids: &stream.token_ids,
        });
        said.hear(heard, answer, target.vocabulary);
        Arc::new(said)
    });
    Outcome { record, said }
}

fn check_length(target: &Target, asked: u32, stream: &AnswerStream) -> Result<(), Failure> {
    let tokens = stream.answer_tokens();
    if target.exact && tokens != u64::from(asked) {
        let detail = format!("{tokens} tokens where {asked} were asked for");
        return Err(Failure::new(ErrorClass::WrongLength, detail));
    }
    Ok(())
}

/// The record while it is being filled.
struct Exchange {
    began: Instant,
    last: Option<Instant>,
    record: Record,
}

impl Exchange {
    fn new(job: &Job, began: Instant) -> Self {
        let record = Record {
            request: job.index,
            session: job.request.session,
            tenant: job.request.tenant,
            intended: job.intended.as_secs_f64(),
            ..Record::default()
        };
        Self {
            began,
            last: None,
            record,
        }
    }

    async fn run(
        &mut self,
        target: &Target,
        body: Bytes,
        stream: &mut AnswerStream,
    ) -> Result<(), Failure> {
        let request = build(target, body)?;
        self.record.sent = Some(self.now());
        let response = target
            .http
            .request(request)
            .await
            .map_err(|error| request_failure(&error))?;
        let served_by = response.headers().get(SERVED_BY);
        let served_by = served_by.and_then(|value| value.to_str().ok());
        self.record.worker = served_by.map(str::to_owned);
        self.record.status = Some(response.status().as_u16());
        if response.status() != StatusCode::OK {
            return Err(status_failure(response).await);
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| Failure::new(ErrorClass::BrokenStream, error.to_string()))?;
            if let Some(piece) = frame.data_ref()
                && stream.push(piece)?
            {
                self.token_came(Instant::now());
            }
        }
        Ok(stream.check_whole()?)
    }

    fn token_came(&mut self, now: Instant) {
        match self.last {
            None => self.record.first_token = Some(self.seconds(now)),
            Some(last) => {
                let gap = now.duration_since(last).as_micros();
                self.record
                    .gaps_us
                    .push(u32::try_from(gap).unwrap_or(u32::MAX));
            }
        }
        self.record.last_token = Some(self.seconds(now));
        self.last = Some(now);
    }

    fn finish(mut self, job: &Job, stream: &AnswerStream, failure: Option<Failure>) -> Record {
        self.record.end = self.now();
        let planned = job.request.prompt_tokens();
        self.record.prompt_tokens = stream.prompt_tokens().unwrap_or(planned);
        self.record.cached_tokens = stream.cached_tokens();
        self.record.answer_tokens = stream.answer_tokens();
        self.record.failure = failure;
        self.record
    }

    fn now(&self) -> f64 {
        self.seconds(Instant::now())
    }

    fn seconds(&self, time: Instant) -> f64 {
        time.duration_since(self.began).as_secs_f64()
    }
}

fn build(target: &Target, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
    let url = format!("{}{}", target.url, target.form.path());
    let mut request = Request::post(&url).header(header::CONTENT_TYPE, "application/json");
    if let Some(key) = &target.api_key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    let request = request.body(Full::new(body));
    request.map_err(|error| Failure::new(ErrorClass::Request, format!("bad URL {url}: {error}")))
}

fn request_failure(error: &anyhow::Error) -> Failure {
    let cause = error.downcast_ref::<hyper_util::client::legacy::Error>();
    let tls = error.downcast_ref::<TlsFailure>();
    let class = if cause.is_some_and(hyper_util::client::legacy::Error::is_connect)
        || tls.is_some_and(|failure| failure.is_handshake)
    {
        ErrorClass::Connect
    } else {
        ErrorClass::Request
    };
    Failure::new(class, format!("{error:#}"))
}

async fn status_failure(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let class = match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ErrorClass::Overloaded,
        status if status.is_client_error() => ErrorClass::Status4xx,
        _ => ErrorClass::Status5xx,
    };
    let body = Limited::new(response.into_body(), ERROR_BYTES_MAX)
        .collect()
        .await;
    let text = match body {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => format!("(unreadable body: {error})"),
    };
    Failure::new(class, format!("status {status}: {}", beginning(&text)))
}
