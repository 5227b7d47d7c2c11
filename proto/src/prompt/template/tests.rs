//! What templates of published models lean on, each in a template of its own.

use serde_json::json;

use super::*;
use crate::prompt::MessagesError;

fn render(source: &str, chat: &ChatPrompt) -> Result<String, PromptError> {
    let special = vec![("bos_token", "<s>".to_owned())];
    ChatTemplate::new(TemplateSource::single(source.to_owned()), special)
        .expect("the template compiles")
        .render(chat)
}

/// The text of a one-message conversation.
fn text(source: &str) -> String {
    render(source, &hello()).expect("the template renders")
}

fn hello() -> ChatPrompt {
    ChatPrompt::new(json!([{"role": "user", "content": "hello"}]))
}

#[test]
fn blocks_are_trimmed_as_transformers_asks() {
    let source = "{% for message in messages %}\n    {% if true %}\n[{{ message.role }}]\n    {% endif %}\n{% endfor %}\n";
    assert_eq!(text(source), "[user]\n");
}

#[test]
fn values_print_as_in_python() {
    assert_eq!(
        text("{{ true }} {{ none }} {{ 1.0 }} {{ 7 }} {{ [1, 'a', none] }} {{ {'k': \"it's\"} }}"),
        r#"True None 1.0 7 [1, 'a', None] {'k': "it's"}"#
    );
    assert_eq!(text("{{ '<&>' }}{{ missing }}"), "<&>");
}

#[test]
fn pythons_methods_and_slices_work() {
    let source = "{% for message in messages[::-1] %}{{ message.content.strip().upper().split('L')[0] }}\
                  {% for key, value in message.items() %}{{ key }};{% break %}{% endfor %}{% endfor %}\
                  {% set ns = namespace(n=1) %}{% for _ in range(3) %}{% set ns.n = ns.n * 2 %}{% endfor %}{{ ns.n }}";
    assert_eq!(text(source), "HErole;8");
}

#[test]
fn tojson_writes_what_python_writes() {
    let mut chat = hello();
    chat.tools = Some(json!([{"z": "<b> & 'é'", "a": [1, 2.5], "e": {}}]));
    assert_eq!(
        render("{{ tools | tojson }}", &chat).expect("renders"),
        r#"[{"z": "<b> & 'é'", "a": [1, 2.5], "e": {}}]"#
    );
    assert_eq!(
        render("{{ tools[0].a | tojson(indent=2) }}", &chat).expect("renders"),
        "[\n  1,\n  2.5\n]"
    );
    assert_eq!(
        render(
            "{{ tools[0] | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}",
            &chat
        )
        .expect("renders"),
        r#"{"a":[1,2.5],"e":{},"z":"<b> & '\u00e9'"}"#
    );
    let error = render("{{ tools | tojson(colour=1) }}", &chat).expect_err("no such argument");
    assert!(matches!(error, PromptError::Render { .. }), "{error}");
}

#[test]
fn a_refusal_is_told_in_the_templates_words() {
    let error = render("{{ raise_exception('roles must alternate') }}", &hello());
    assert!(
        matches!(&error, Err(PromptError::Refused { reason }) if reason == "roles must alternate"),
        "{error:?}"
    );
}

#[test]
fn a_failure_names_the_line_and_keeps_the_conversation_out() {
    let error = render("\n\n{{ messages[0].content.frobnicate() }}", &hello())
        .expect_err("no such method")
        .to_string();
    assert!(error.contains("chat_template:3"), "{error}");
    assert!(!error.contains("hello"), "{error}");
}

#[test]
fn a_template_that_does_not_parse_names_the_line() {
    let error = ChatTemplate::new(TemplateSource::single("\n{% if %}".to_owned()), Vec::new())
        .expect_err("no condition");
    assert!(error.contains("chat_template:2"), "{error}");
}

#[test]
fn the_date_is_the_clocks() {
    let day = text("{{ strftime_now('%Y-%m-%d') }}");
    let now = clock::strftime("%Y-%m-%d", clock::now_s());
    // Midnight may fall between the two readings.
    let before = clock::strftime("%Y-%m-%d", clock::now_s() - 60);
    assert!(day == now || day == before, "{day}");
}

#[test]
fn generation_marks_leave_no_trace() {
    let source = "a\n{%- generation -%}\n b \n{%- endgeneration %} c{% generation %}d{% endgeneration %}\
                  {% set generation = 1 %}{{ generation }} {% raw";
    assert_eq!(
        neutralise_generation(source),
        "a\n{%- if true -%}\n b \n{%- endif %} c{% if true %}d{% endif %}\
         {% set generation = 1 %}{{ generation }} {% raw"
    );
    assert_eq!(
        text("a\n{%- generation -%}\n b \n{%- endgeneration %} c"),
        "ab c"
    );
}

#[test]
fn variables_have_their_defaults_and_their_order() {
    let source = "{{ bos_token }}|{{ tools is none }}|{{ documents is none }}|\
                  {{ add_generation_prompt }}|{{ enable_thinking is defined }}|\
                  {{ eos_token is defined }}";
    assert_eq!(text(source), "<s>|True|True|True|False|False");
    let mut chat = hello();
    chat.add_generation_prompt = false;
    let kwargs = json!({"enable_thinking": false, "bos_token": "x", "messages": [], "add_generation_prompt": true});
    chat.template_kwargs = kwargs.as_object().cloned();
    let source =
        "{{ bos_token }}|{{ enable_thinking }}|{{ messages | length }}|{{ add_generation_prompt }}";
    assert_eq!(render(source, &chat).expect("renders"), "<s>|False|1|False");
}

#[test]
fn tools_choose_their_own_template() {
    let source = TemplateSource {
        default: "plain".to_owned(),
        tool_use: Some("with {{ tools | length }}".to_owned()),
    };
    let template = ChatTemplate::new(source, Vec::new()).expect("compiles");
    let mut chat = hello();
    assert_eq!(template.render(&chat).expect("renders"), "plain");
    chat.tools = Some(json!([{}, {}]));
    assert_eq!(template.render(&chat).expect("renders"), "with 2");
}

#[test]
fn messages_are_checked_before_the_template_sees_them() {
    let error = render("x", &ChatPrompt::new(json!([{"content": "hello"}])));
    assert!(
        matches!(
            error,
            Err(PromptError::Messages(MessagesError::NoRole { index: 0 }))
        ),
        "{error:?}"
    );
}

fn iterates(source: &str) -> bool {
    ChatTemplate::new(TemplateSource::single(source.to_owned()), Vec::new())
        .expect("compiles")
        .default_iterates
}

#[test]
fn templates_that_take_content_apart_are_told_from_those_that_print_it() {
    for source in [
        "{% for m in messages %}{% for part in m['content'] %}{{ part.text }}{% endfor %}{% endfor %}",
        "{% macro show(c) %}{% for part in c %}{{ part.text }}{% endfor %}{% endmacro %}{{ show(messages[0].content) }}",
        "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}{{ messages[0].content[0].text }}{% endif %}",
        "{% set c = messages[-1].content %}{{ c | map(attribute='text') | join }}",
    ] {
        assert!(iterates(source), "{source}");
    }
    for source in [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
        "{{ messages[0].content | trim }}",
        "{% if '</think>' in messages[0].content %}{{ messages[0].content }}{% endif %}",
        "{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}",
        "{{ messages[0].content.strip() }}",
        "{{ messages[0]['role'] + messages[0]['content'] }}",
        "{% if messages[0].content %}{{ messages[0].content | length }}{% endif %}",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
    ] {
        assert!(!iterates(source), "{source}");
    }
}

#[test]
fn lists_of_text_reach_a_printing_template_as_text() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let chat = ChatPrompt::new(json!([{"role": "user", "content": parts}]));
    assert_eq!(
        render("{{ messages[0].content }}", &chat).expect("renders"),
        "a\nb"
    );
    assert_eq!(
        render(
            "{% for part in messages[0].content %}<{{ part.text }}>{% endfor %}",
            &chat
        )
        .expect("renders"),
        "<a><b>"
    );
}
