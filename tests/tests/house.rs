//! The rules of the house, as tests: who may import whom, what every file begins with, and which words stay out.
//!
//! Rules that only live in a document are forgotten within weeks. These are read off the source text itself, so
//! that breaking one is a failing test that names the file and the line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The packages of the workspace and those of ours that each may depend on.
const PACKAGE_ARROWS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("epp", &["proto"]),
    ("engine", &["proto"]),
    ("loadtest", &["engine", "epp", "proto"]),
    ("tests", &["loadtest", "proto"]),
];

/// Rooms of epp, in the order that a request travels, and the other rooms that each may name. `pipeline.rs` and its
/// folder, which walk them, are the one part that knows them all; the streams reach it through a trait of their own.
///
/// `config` names no room, so every room may name its types: what an operator wrote, a plugin's parameters, and how a
/// file is followed. `observe` names the fleet, whose state it shows; the streams name `observe` for the one gauge that
/// counts them while they are open.
const EPP_ARROWS: &[(&str, &[&str])] = &[
    ("ext_proc", &["config", "observe"]),
    ("request", &["config"]),
    ("tokens", &["config"]),
    ("index", &["config", "fleet"]),
    ("flow", &["config", "fleet"]),
    ("schedule", &["config", "fleet"]),
    ("fleet", &["config"]),
    ("config", &[]),
    ("observe", &["config", "fleet"]),
];

/// Rooms of the engine. `worker` and the shells (`api`, `export`) name the cores; no core names a shell.
const ENGINE_ARROWS: &[(&str, &[&str])] = &[
    (
        "api",
        &["export", "model", "sample", "scheduler", "text", "worker"],
    ),
    ("text", &[]),
    ("worker", &["backend", "kv", "sample", "scheduler"]),
    ("scheduler", &["backend", "kv", "sample"]),
    ("kv", &[]),
    ("model", &[]),
    ("backend", &["model", "sample"]),
    ("sample", &["backend"]),
    ("export", &["scheduler", "worker"]),
];

/// Words that mark unfinished work, or that name the machine that a file was written on.
const BANNED: &[&str] = &[
    "TODO",
    "FIXME",
    "XXX",
    "todo!(",
    "unimplemented!(",
    "/work/",
    "/tmp/w",
];

const LINES_MAX: usize = 700;

#[test]
fn packages_depend_only_along_the_arrows() {
    for (package, allowed) in PACKAGE_ARROWS {
        let manifest = read(&root().join(package).join("Cargo.toml"));
        for (other, _) in PACKAGE_ARROWS {
            let named = manifest.contains(&format!("pointsman-{other}")) && *other != *package;
            assert!(
                !named || allowed.contains(other),
                "{package}/Cargo.toml depends on pointsman-{other}: not an arrow of the house"
            );
        }
    }
}

#[test]
fn rooms_of_epp_never_import_sideways() {
    check_rooms("epp", EPP_ARROWS);
}

#[test]
fn rooms_of_the_engine_never_import_sideways() {
    check_rooms("engine", ENGINE_ARROWS);
}

#[test]
fn every_file_opens_with_what_it_does() {
    for path in sources() {
        let text = read(&path);
        assert!(
            text.starts_with("//!"),
            "{} does not open with a `//!` line",
            shown(&path)
        );
    }
}

#[test]
fn no_file_holds_unfinished_work_or_a_machine_path() {
    for path in sources().iter().filter(|path| !path.ends_with("house.rs")) {
        for (number, line) in read(path).lines().enumerate() {
            for word in BANNED {
                assert!(
                    !line.contains(word),
                    "{}:{} holds `{word}`",
                    shown(path),
                    number + 1
                );
            }
        }
    }
}

#[test]
fn no_file_has_grown_past_one_concept() {
    for path in sources() {
        let lines = read(&path).lines().count();
        assert!(
            lines <= LINES_MAX,
            "{} has {lines} lines: which second concept does it hold?",
            shown(&path)
        );
    }
}

/// Every `crate::x` in a room's product code must be that room itself or one that it may name.
fn check_rooms(package: &str, arrows: &[(&str, &[&str])]) {
    let rooms: BTreeMap<&str, &[&str]> = arrows.iter().copied().collect();
    for (room, allowed) in &rooms {
        let folder = root().join(package).join("src").join(room);
        assert!(folder.is_dir(), "{package} has no room `{room}`");
        let mut lines_read = 0;
        for path in rust_files(&folder) {
            for (number, line) in product_lines(&path) {
                lines_read += 1;
                for named in rooms_named(&line) {
                    let is_room = rooms.contains_key(named.as_str()) || named == "pipeline";
                    let fine = !is_room || named == *room || allowed.contains(&named.as_str());
                    assert!(
                        fine,
                        "{}:{number}: room `{room}` names room `{named}`",
                        shown(&path)
                    );
                }
            }
        }
        assert!(lines_read > 0, "no line of room `{room}` was read");
    }
}

/// The lines of a file before its inline tests, without comments, numbered from one.
fn product_lines(path: &Path) -> Vec<(usize, String)> {
    if below_root(path)
        .components()
        .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
    {
        return Vec::new();
    }
    read(path)
        .lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(index, line)| (index + 1, line.to_owned()))
        .collect()
}

/// The first path segment after each `crate::` in a line.
fn rooms_named(line: &str) -> Vec<String> {
    line.split("crate::")
        .skip(1)
        .map(|rest| {
            rest.chars()
                .take_while(|character| character.is_alphanumeric() || *character == '_')
                .collect()
        })
        .collect()
}

fn sources() -> Vec<PathBuf> {
    PACKAGE_ARROWS
        .iter()
        .flat_map(|(package, _)| {
            let folder = root().join(package);
            [
                folder.join("src"),
                folder.join("tests"),
                folder.join("benches"),
            ]
        })
        .filter(|folder| folder.is_dir())
        .flat_map(|folder| rust_files(&folder))
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a readable source folder") {
        let path = entry.expect("a readable folder entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("a workspace").to_owned()
}

/// The path within the workspace. Folders above it may have any name, and so may this package's.
fn below_root(path: &Path) -> &Path {
    path.strip_prefix(root()).unwrap_or(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", shown(path)))
}

fn shown(path: &Path) -> String {
    below_root(path).display().to_string()
}
