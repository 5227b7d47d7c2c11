//! `loadtest drive`: load at any endpoint that speaks OpenAI's API, and what it was like to be its client.
//!
//! flags → plan → schedule → exchanges → records → summary → report. The schedule, the prompts, the reading of streams
//! and the summary are pure; the loop, the exchanges and the files are their shell.
//!
//! Three decisions make the numbers mean something:
//!
//! - Latencies count from when a request should have been sent. A server that stalls is charged with all that its stall
//!   delays; a client that waits before it sends on would leave that out (coordinated omission). How late the load
//!   generator itself was is reported beside them.
//! - Prompts share prefixes because the workload says so, and a follow-up contains the answer that really came. What the
//!   servers say they had cached is held against what one cache without bounds would have found.
//! - Goodput is what met the objective, a second. A failed request meets none.

mod compare;
mod exchange;
mod live;
mod options;
mod page;
mod plan;
mod prompt;
mod record;
mod run;
mod schedule;
mod spread;
mod summary;
mod table;
mod tally;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use self::options::{Arrivals, DriveOptions, EXAMPLES, LoadOptions};
pub use self::prompt::Form;
pub use self::record::{ErrorClass, Failure, Record, Slo};
pub use self::spread::Latency;
pub use self::summary::{Bin, CachedReport, ErrorReport, RunReport, WorkerReport};

pub(crate) use self::exchange::Target;
pub(crate) use self::live::Live;
pub(crate) use self::options::time;
pub(crate) use self::plan::{PlannedRun, Runs};
pub(crate) use self::run::Plan;
use crate::client::{HttpClient, Trust};
use crate::console::Console;
use crate::workload::Totals;

/// How long the question for the model's name may take.
const MODELS_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest report that `--compare` reads.
const REPORT_BYTES_MAX: u64 = 256 << 20;
/// What the reports are called in their own files, and the version of their form.
const REPORT_KIND: &str = "pointsman-drive";
const REPORT_VERSION: u32 = 1;

/// All runs of one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub kind: String,
    pub version: u32,
    pub url: String,
    pub model: String,
    pub form: String,
    pub workload: String,
    pub seed: u64,
    pub totals: Totals,
    pub slo: Slo,
    pub runs: Vec<RunReport>,
}

/// Drives the endpoint, or compares two reports, and prints. Fails when nothing could be sent or a file not be written;
/// requests that failed are part of the result.
pub async fn run(options: DriveOptions) -> ExitCode {
    let console = Console::new(plan::wanted(&options.load));
    let result = match options.compare.as_slice() {
        [before, after] => compare_files(before, after, &options, &console),
        _ => drive_and_write(&options, &console).await,
    };
    match result {
        Ok(json) => {
            console.line(&json);
            ExitCode::SUCCESS
        }
        Err(error) => console.no_result(&error, options.json),
    }
}

async fn drive_and_write(options: &DriveOptions, console: &Console) -> Result<String> {
    let mut records = RecordsFile::create(options.requests_out.as_deref())?;
    let report = drive(options, console, &mut records).await?;
    records.finish()?;
    if !options.json {
        console.line(&table::text(&report));
    }
    let json = serde_json::to_string(&report)?;
    write(options.out.as_deref(), &json)?;
    write(options.html.as_deref(), &page::of(&report).to_html())?;
    Ok(json)
}

async fn drive(
    options: &DriveOptions,
    console: &Console,
    records: &mut RecordsFile,
) -> Result<Report> {
    let runs = Runs::of(&options.load)?;
    let target = Arc::new(target(options).await?);
    let slo = Slo::new(options.slo_ttft, options.slo_itl);
    let mut live = Live::new(!options.json);
    let mut report = Report {
        kind: REPORT_KIND.to_owned(),
        version: REPORT_VERSION,
        url: target.url.clone(),
        model: target.model.clone(),
        form: options.form.name().to_owned(),
        workload: String::new(),
        seed: options.load.seed,
        totals: Totals::default(),
        slo,
        runs: Vec::with_capacity(runs.len()),
    };
    for index in 0..runs.len() {
        let run = runs.make(index)?;
        let workload = &run.plan.workload;
        report.workload.clone_from(&workload.name);
        report.totals = workload.totals();
        if !options.json {
            let requests = workload.requests.len();
            console.begin_block(&format!(
                "{}: {requests} requests of {}",
                run.load, workload.name
            ));
        }
        let (measured, all) = measure(&target, &run, slo, &mut live).await?;
        records.write(&run.load, &all)?;
        let is_interrupted = measured.interrupted;
        report.runs.push(measured);
        if is_interrupted {
            break;
        }
    }
    Ok(report)
}

/// One run, summed up, and what became of each request.
pub(crate) async fn measure(
    target: &Arc<Target>,
    run: &PlannedRun,
    slo: Slo,
    live: &mut Live,
) -> Result<(RunReport, Vec<Record>)> {
    let tally = run::run(target, &run.plan, live).await?;
    let workload = &run.plan.workload;
    let report = summary::summarise(run.load.clone(), run.rate, workload, &tally, slo);
    Ok((report, tally.records))
}

async fn target(options: &DriveOptions) -> Result<Target> {
    let url = options.url.as_deref().context("--url is missing")?;
    let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
    let http = client(&url, options)?;
    let model = match &options.model {
        Some(model) => model.clone(),
        None => first_model(&http, &url, options.api_key.as_deref()).await?,
    };
    Ok(Target {
        http,
        url,
        model,
        api_key: options.api_key.clone(),
        form: options.form,
        vocabulary: options.vocabulary,
        exact: options.ignore_eos.unwrap_or(options.form == Form::Tokens),
        timeout: options.load.timeout,
    })
}

fn client(url: &str, options: &DriveOptions) -> Result<HttpClient> {
    let trust = match &options.ca_file {
        _ if options.insecure => Trust::Anyone,
        Some(path) => Trust::CaFile(path.clone()),
        None => Trust::Platform,
    };
    if url.starts_with("http://") {
        ensure!(
            trust == Trust::Platform,
            "--ca-file and --insecure are for https:// URLs, and {url} has no TLS"
        );
        return Ok(HttpClient::new());
    }
    ensure!(
        url.starts_with("https://"),
        "{url} begins with neither http:// nor https://"
    );
    let http = HttpClient::with_tls(&trust)?;
    if trust == Trust::Anyone {
        live::warn(&format!(
            "WARNING: --insecure: any certificate is taken; {url} may be anyone's, and reads prompts and the API key"
        ));
    }
    Ok(http)
}

async fn first_model(http: &HttpClient, url: &str, api_key: Option<&str>) -> Result<String> {
    let url = format!("{url}/v1/models");
    let reply = http
        .get_as(&url, api_key, MODELS_TIMEOUT)
        .await
        .context("--model is not given, and asking for it failed")?;
    let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let name = body["data"][0]["id"].as_str();
    let name = name.with_context(|| {
        format!(
            "{url} names no model (status {}); --model does",
            reply.status
        )
    })?;
    Ok(name.to_owned())
}

fn compare_files(
    before: &Path,
    after: &Path,
    options: &DriveOptions,
    console: &Console,
) -> Result<String> {
    let comparison = compare::Comparison::of(&read(before)?, &read(after)?);
    if !options.json {
        console.line(&table::comparison_text(&comparison));
    }
    let json = serde_json::to_string(&comparison)?;
    write(options.out.as_deref(), &json)?;
    write(
        options.html.as_deref(),
        &page::of_comparison(&comparison).to_html(),
    )?;
    Ok(json)
}

fn read(path: &Path) -> Result<Report> {
    let shown = path.display();
    let length = fs::metadata(path)
        .with_context(|| format!("cannot read {shown}"))?
        .len();
    ensure!(
        length <= REPORT_BYTES_MAX,
        "{shown} is longer than {REPORT_BYTES_MAX} bytes"
    );
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let report: Report = serde_json::from_str(&text)
        .with_context(|| format!("{shown} is no report of loadtest drive"))?;
    ensure!(
        report.kind == REPORT_KIND && report.version == REPORT_VERSION,
        "{shown} is a {} of version {}, not a {REPORT_KIND} of version {REPORT_VERSION}",
        report.kind,
        report.version
    );
    Ok(report)
}

fn write(path: Option<&Path>, text: &str) -> Result<()> {
    match path {
        Some(path) => {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        }
        None => Ok(()),
    }
}

/// Where records go, opened before anything is sent: a path that cannot be written is found out first.
struct RecordsFile(Option<std::io::BufWriter<fs::File>>);

#[derive(Serialize)]
struct RecordLine<'a> {
    load: &'a str,
    #[serde(flatten)]
    record: &'a Record,
}

impl RecordsFile {
    fn create(path: Option<&Path>) -> Result<Self> {
        let open = |path: &Path| {
            fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))
        };
        let file = path.map(open).transpose()?;
        Ok(Self(file.map(std::io::BufWriter::new)))
    }

    fn write(&mut self, load: &str, records: &[Record]) -> Result<()> {
        use std::io::Write;
        let Some(file) = &mut self.0 else {
            return Ok(());
        };
        for record in records {
            serde_json::to_writer(&mut *file, &RecordLine { load, record })?;
            file.write_all(b"\n")?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        use std::io::Write;
        match self.0 {
            Some(mut file) => file.flush().context("cannot write --requests-out"),
            None => Ok(()),
        }
    }
}
