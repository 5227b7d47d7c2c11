//! The file format, its error messages, and a file that changes under the watch.

use super::*;

const TWO: &str = "
endpoints:
  - name: vllm-0
    address: \"10.0.0.1\"
    port: \"8000\"
  - name: vllm-1
    namespace: prod
    address: fd00::2
    port: 8001
    labels:
      llm-d.ai/role: decode
    kvEvents: tcp://[fd00::2]:5557
    kvReplay: tcp://[fd00::2]:5558
";

fn message(content: &str) -> String {
    parse("workers.yaml", content.as_bytes())
        .unwrap_err()
        .to_string()
}

fn one(field: &str, value: &str) -> String {
    let mut fields = BTreeMap::from([("name", "a"), ("address", "10.0.0.1"), ("port", "8000")]);
    fields.insert(field, value);
    let lines: Vec<String> = fields
        .iter()
        .map(|(field, value)| format!("    {field}: {value}\n"))
        .collect();
    format!("endpoints:\n  -\n{}", lines.concat())
}

#[test]
fn the_fields_format_is_read_with_our_additions() {
    let specs = parse("workers.yaml", TWO.as_bytes()).unwrap();
    assert_eq!(
        specs[0],
        EndpointSpec::new("vllm-0", ([10, 0, 0, 1], 8000).into())
    );
    assert_eq!(specs[1].name, "prod/vllm-1");
    assert_eq!(specs[1].address, "[fd00::2]:8001".parse().unwrap());
    assert_eq!(specs[1].labels["llm-d.ai/role"], "decode");
    assert_eq!(specs[1].kv_events.as_deref(), Some("tcp://[fd00::2]:5557"));
    assert_eq!(specs[1].kv_replay.as_deref(), Some("tcp://[fd00::2]:5558"));
}

#[test]
fn an_entry_with_several_ports_is_an_endpoint_for_each() {
    let content = "
targetPorts: [{number: 8000}, \"8001\"]
endpoints:
  - name: a
    address: \"[fd00::1]\"
    kvEvents: tcp://[fd00::1]:5557
  - name: b
    address: 10.0.0.2
    ports: [9000, 9001, 9002]
    annotations: {llm-d.ai/active-ports: \"9000,9002\"}
    kvEvents: [tcp://h:1, tcp://h:2, tcp://h:3]
  - name: c
    address: 10.0.0.3
    port: 7000
  - name: d
    namespace: prod
    address: 10.0.0.4
    targetPorts: [7000]
";
    let specs = parse("workers.yaml", content.as_bytes()).unwrap();
    let shown: Vec<String> = specs
        .iter()
        .map(|spec| {
            let events = spec.kv_events.as_deref().unwrap_or("-");
            format!(
                "{} {} {} {} {events}",
                spec.name, spec.pod, spec.rank, spec.address
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "a-rank-0 a 0 [fd00::1]:8000 tcp://[fd00::1]:5557",
            "a-rank-1 a 1 [fd00::1]:8001 tcp://[fd00::1]:5558",
            "b-rank-0 b 0 10.0.0.2:9000 tcp://h:1",
            "b-rank-2 b 2 10.0.0.2:9002 tcp://h:3",
            "c c 0 10.0.0.3:7000 -",
            "prod/d prod/d 0 10.0.0.4:7000 -",
        ]
    );
}

#[test]
fn ports_that_make_no_sense_are_named() {
    let none = "endpoints: [{name: a, address: 10.0.0.1}]";
    let expected = "workers.yaml, endpoints[0].port: no port is given";
    assert_eq!(message(none), expected);
    let of = |fields: &str| {
        message(&format!(
            "endpoints: [{{name: a, address: 10.0.0.1, {fields}}}]"
        ))
    };
    assert!(of("port: 1, ports: [2]").contains("give one of them"));
    assert!(of("ports: [1, 0]").contains("endpoints[0].ports: \"0\" is not a port"));
    assert!(of("ports: [1, 1]").contains("endpoints[0].ports: port 1 is given twice"));
    assert!(of("targetPorts: [1,2,3,4,5,6,7,8,9]").contains("endpoints[0].targetPorts: 9 ports"));
    let active = of("port: 1, annotations: {llm-d.ai/active-ports: x}");
    assert!(active.contains("endpoints[0].annotations"), "{active}");
    assert!(message("targetPorts: [0]\nendpoints: []").contains("workers.yaml, targetPorts: "));
    let both = "targetPorts: [1]\nports: [1]\nendpoints: []";
    assert!(message(both).contains("give one of both"));
}

#[test]
fn json_is_read_too() {
    let json = r#"{"endpoints": [{"name": "a", "address": "10.0.0.1", "port": "8000"}]}"#;
    assert_eq!(parse("workers.json", json.as_bytes()).unwrap().len(), 1);
    assert!(
        parse("workers.json", br#"{"endpoints": []}"#)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn errors_name_file_entry_and_field() {
    assert_eq!(
        message(&one("address", "worker.example")),
        "workers.yaml, endpoints[0].address: \"worker.example\" is not an IP address"
    );
    for port in ["0", "65536", "http", "-1", "\"\""] {
        let text = message(&one("port", port));
        assert!(text.starts_with("workers.yaml"), "{text}");
    }
    assert!(message(&one("port", "65536")).contains("endpoints[0].port"));
    assert!(message(&one("name", "\"\"")).contains("endpoints[0].name"));
    assert!(message(&one("kvEvents", "ipc://x")).contains("endpoints[0].kvEvents"));
}

#[test]
fn syntax_errors_name_the_line() {
    let text = message("endpoints:\n  - name: a\n    adress: 10.0.0.1\n    port: 1\n");
    assert!(text.contains("line 3") && text.contains("adress"), "{text}");
    let text = message("endpoints: [\n");
    assert!(text.contains("line"), "{text}");
    assert!(message("").starts_with("workers.yaml"));
}

#[test]
fn duplicates_and_large_files_are_refused() {
    let twice = TWO
        .replace("vllm-1", "vllm-0")
        .replace("    namespace: prod\n", "");
    assert!(message(&twice).contains("two endpoints are named \"vllm-0\""));
    // The same name in another namespace is another endpoint.
    let apart = TWO.replace("vllm-1", "vllm-0");
    assert_eq!(parse("workers.yaml", apart.as_bytes()).unwrap().len(), 2);
    let large = format!("{TWO}#{}", "x".repeat(FILE_BYTES_MAX));
    assert!(message(&large).contains("larger than"));
}

fn names(fleet: &Fleet) -> Vec<String> {
    let members = Arc::clone(&fleet.membership().borrow());
    members
        .iter()
        .map(|member| member.spec.name.clone())
        .collect()
}

#[test]
fn a_bad_content_keeps_the_list_and_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("workers.yaml");
    std::fs::write(&path, TWO).unwrap();
    let fleet = Fleet::new();
    let mut watch = FileWatch::start(path.clone(), Arc::clone(&fleet)).unwrap();
    assert_eq!(names(&fleet), ["vllm-0", "prod/vllm-1"]);

    for _ in 0..3 {
        watch.look(Ok(b"endpoints: 7".to_vec()));
    }
    assert_eq!(watch.counters.refused.load(Relaxed), 1);
    std::fs::remove_file(&path).unwrap();
    for _ in 0..3 {
        watch.look(read(&path));
    }
    assert_eq!(watch.counters.refused.load(Relaxed), 2);
    assert_eq!(names(&fleet), ["vllm-0", "prod/vllm-1"]);

    watch.look(Ok(one("name", "b").into_bytes()));
    assert_eq!(names(&fleet), ["b"]);
    assert_eq!(watch.counters.loaded.load(Relaxed), 2);
}

#[test]
fn a_bad_file_at_the_start_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let missing = FileWatch::start(folder.path().join("none.yaml"), Fleet::new());
    assert!(matches!(missing, Err(FileError::Read { .. })));
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_swapped_link_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let version = |name: &str, content: &str| {
        let version = folder.path().join(name);
        std::fs::create_dir(&version).unwrap();
        std::fs::write(version.join("workers.yaml"), content).unwrap();
        version
    };
    let link = folder.path().join("data");
    std::os::unix::fs::symlink(version("v1", TWO), &link).unwrap();
    let fleet = Fleet::new();
    let watch = FileWatch::start(link.join("workers.yaml"), Arc::clone(&fleet)).unwrap();
    let mut membership = fleet.membership();
    let task = tokio::spawn(watch.run());

    // As a ConfigMap volume does it: a new link is renamed over the old one.
    let next = folder.path().join("next");
    std::os::unix::fs::symlink(version("v2", &one("name", "b")), &next).unwrap();
    std::fs::rename(&next, &link).unwrap();
    membership.changed().await.unwrap();
    assert_eq!(names(&fleet), ["b"]);
    task.abort();
}
