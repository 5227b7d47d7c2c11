//! Following a file that changes while the program runs.
//!
//! A file is followed by reading it once a second and comparing its content, not by file-system
//! events, because content is what matters and events are lost exactly where files are swapped: a
//! ConfigMap volume renames a directory link above the file, editors replace the file, network file
//! systems send no events at all. A file of the size limit costs some hundred microseconds a second.
//!
//! A new content that is refused changes nothing: what was good goes on, the refusal is logged once
//! with all its reasons, counted, and kept for the status page until a content is taken again.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{info, warn};

/// How often files are read again.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// A content, or why there is none.
pub type Content = Result<String, String>;

/// Reads a file, and no more than a byte past `most`, whatever its size. Errors name the file.
pub fn read(path: &Path, most: usize) -> Content {
    let mut content = Vec::new();
    let file = path.display();
    std::fs::File::open(path)
        .and_then(|opened| opened.take(most as u64 + 1).read_to_end(&mut content))
        .map_err(|error| format!("{file}: {error}"))?;
    if content.len() > most {
        return Err(format!("{file}: larger than {most} bytes"));
    }
    String::from_utf8(content).map_err(|error| format!("{file}: {error}"))
}

/// The contents of some files, as last seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileContent<T> {
    last: T,
}

/// What a look at a file shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    Same,
    Changed,
}

impl<T: PartialEq> FileContent<T> {
    pub fn new(content: T) -> Self {
        Self { last: content }
    }

    /// Compares with what was last seen, and remembers it. A content that was refused is the last
    /// one, too, so it is not looked at twice.
    pub fn look(&mut self, content: T) -> Look {
        if content == self.last {
            return Look::Same;
        }
        self.last = content;
        Look::Changed
    }

    pub fn last(&self) -> &T {
        &self.last
    }
}

/// How reloading went since the start. The first load is not counted.
#[derive(Debug, Default)]
pub struct ReloadState {
    /// Contents taken over.
    pub loaded: AtomicU64,
    /// Contents refused, each counted once.
    pub refused: AtomicU64,
    error: Mutex<Option<String>>,
}

impl ReloadState {
    /// Why the present content of the file is not what runs; `None` where it is.
    pub fn last_error(&self) -> Option<String> {
        self.error.lock().clone()
    }

    /// Counts a content that was taken over.
    pub fn taken(&self) {
        self.loaded.fetch_add(1, Relaxed);
        *self.error.lock() = None;
    }

    /// Counts a content that was refused, and keeps why.
    pub fn refused(&self, error: String) {
        self.refused.fetch_add(1, Relaxed);
        *self.error.lock() = Some(error);
    }
}

/// Hands each new content of a file to `take`, which says why it refuses one.
#[derive(Debug)]
pub struct Reload<F> {
    path: PathBuf,
    most_bytes: usize,
    content: FileContent<Content>,
    state: Arc<ReloadState>,
    take: F,
}

impl<F: FnMut(&str) -> Result<(), String>> Reload<F> {
    /// `content` is what the caller has read and taken over already.
    pub fn new(path: PathBuf, most_bytes: usize, content: String, take: F) -> Self {
        Self {
            path,
            most_bytes,
            content: FileContent::new(Ok(content)),
            state: Arc::default(),
            take,
        }
    }

    /// The counts and the last error, to be exported.
    pub fn state(&self) -> Arc<ReloadState> {
        Arc::clone(&self.state)
    }

    /// Follows the file until the future is dropped.
    pub async fn run(mut self) {
        let mut turns = tokio::time::interval(INTERVAL);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let (path, most) = (self.path.clone(), self.most_bytes);
            if let Ok(content) = tokio::task::spawn_blocking(move || read(&path, most)).await {
                self.look(content);
            }
        }
    }

    /// Takes a content over where it is a new one.
    pub fn look(&mut self, content: Content) {
        if self.content.look(content) == Look::Same {
            return;
        }
        let file = self.path.display();
        let outcome = match self.content.last() {
            Ok(text) => (self.take)(text),
            Err(error) => Err(error.clone()),
        };
        match outcome {
            Ok(()) => {
                info!(%file, "file loaded again");
                self.state.taken();
            }
            Err(error) => {
                warn!(%file, %error, "file refused, what ran before goes on");
                self.state.refused(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(state: &ReloadState) -> (u64, u64) {
        (state.loaded.load(Relaxed), state.refused.load(Relaxed))
    }

    #[test]
    fn bad_content_is_refused_once_and_the_good_one_stays() {
        let mut running = vec!["first".to_owned()];
        let mut reload = Reload::new("f".into(), 10, "first".to_owned(), |text: &str| {
            if text.contains("bad") {
                return Err(format!("f:1:1: {text}"));
            }
            running.push(text.to_owned());
            Ok(())
        });
        let state = reload.state();
        reload.look(Ok("first".to_owned()));
        assert_eq!(counts(&state), (0, 0), "the content of the start is known");
        for _ in 0..3 {
            reload.look(Ok("bad".to_owned()));
        }
        assert_eq!(counts(&state), (0, 1));
        assert_eq!(state.last_error().as_deref(), Some("f:1:1: bad"));
        for _ in 0..3 {
            reload.look(Err("f: gone".to_owned()));
        }
        assert_eq!(counts(&state), (0, 2));
        reload.look(Ok("second".to_owned()));
        assert_eq!((counts(&state), state.last_error()), ((1, 2), None));
        assert_eq!(running, ["first", "second"]);
    }

    #[test]
    fn going_back_to_the_running_content_ends_the_error() {
        let mut reload = Reload::new("f".into(), 10, "good".to_owned(), |text: &str| {
            (text == "good")
                .then_some(())
                .ok_or_else(|| "no".to_owned())
        });
        let state = reload.state();
        reload.look(Ok("bad".to_owned()));
        reload.look(Ok("good".to_owned()));
        assert_eq!(state.last_error(), None);
    }

    #[test]
    fn reading_is_bounded_and_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        assert!(read(&path, 4).unwrap_err().contains("c.yaml"));
        std::fs::write(&path, "1234").unwrap();
        assert_eq!(read(&path, 4).as_deref(), Ok("1234"));
        std::fs::write(&path, "12345").unwrap();
        assert!(read(&path, 4).unwrap_err().contains("larger than 4 bytes"));
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read(&path, 4).unwrap_err().contains("c.yaml"));
    }

    #[tokio::test(start_paused = true)]
    async fn running_follows_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "one").unwrap();
        let (sender, mut seen) = tokio::sync::mpsc::channel(4);
        let reload = Reload::new(path.clone(), 100, "one".to_owned(), move |text: &str| {
            sender
                .try_send(text.to_owned())
                .map_err(|error| error.to_string())
        });
        let follower = tokio::spawn(reload.run());
        std::fs::write(&path, "two").unwrap();
        assert_eq!(seen.recv().await.as_deref(), Some("two"));
        follower.abort();
    }
}
