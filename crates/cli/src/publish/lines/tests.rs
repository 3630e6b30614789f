use super::*;

fn defaults() -> Defaults {
    Defaults {
        format: Format::Json,
        key: None,
        headers: Vec::new(),
        delay: Duration::ZERO,
        max_body: 64,
    }
}

fn read(text: &str) -> Vec<Result<Entry, String>> {
    Lines::new(text.as_bytes(), "in".to_owned(), defaults())
        .map(|entry| entry.map_err(|bad| bad.place()))
        .collect()
}

fn only(text: &str) -> Entry {
    let mut entries = read(text);
    assert_eq!(entries.len(), 1, "{text}");
    entries.remove(0).unwrap_or_else(|bad| panic!("{bad}"))
}

fn refused(text: &str) -> String {
    read(text)
        .into_iter()
        .find_map(Result::err)
        .unwrap_or_else(|| panic!("{text} was accepted"))
}

#[test]
fn a_line_says_all_about_its_message() {
    let entry = only(
        r#"{"id":"a","key":"k","headers":{"t":"x","n":5,"b":true},"body":"hé","delay":"1500ms"}"#,
    );
    let message = entry.message;
    assert_eq!(message.id.unwrap().as_str(), "a");
    assert_eq!(message.partition_key.unwrap().as_str(), "k");
    assert_eq!(message.headers.get("t"), Some("x"));
    assert_eq!(message.headers.get("n"), Some("5"));
    assert_eq!(message.headers.get("b"), Some("true"));
    assert_eq!(&message.body[..], "hé".as_bytes());
    assert_eq!(entry.delay, Duration::from_millis(1500));
}

#[test]
fn a_body_is_text_or_any_json_as_written_or_base64() {
    let body = |text: &str| only(text).message.body.to_vec();
    assert_eq!(body(r#"{"body":"a\nb"}"#), b"a\nb");
    assert_eq!(
        body(r#"{"body":{"b": 1,  "a": [1.0]}}"#),
        br#"{"b": 1,  "a": [1.0]}"#
    );
    assert_eq!(body(r#"{"body":17}"#), b"17");
    assert_eq!(body(r#"{"body_base64":"AP8="}"#), [0, 255]);
    assert_eq!(body(r#"{"body":""}"#), b"");
}

#[test]
fn blank_lines_and_windows_ends_are_passed_over() {
    let entries = read("\u{feff}{\"body\":\"1\"}\r\n\r\n  \n{\"body\":\"2\"}");
    let lines: Vec<_> = entries
        .into_iter()
        .map(|entry| entry.unwrap().line)
        .collect();
    assert_eq!(lines, [1, 4]);
}

#[test]
fn a_bad_line_is_named_with_what_is_wrong() {
    let good = "{\"body\":\"1\"}\n";
    for (line, what) in [
        ("{\"body\":", "line 2: not valid JSON at column 8"),
        ("hello", "--format lines"),
        ("{\"bdy\":\"1\"}", "unknown field `bdy`"),
        ("{\"id\":\"1\"}", "neither body nor body_base64"),
        (
            "{\"body\":\"1\",\"body_base64\":\"AA==\"}",
            "both body and body_base64",
        ),
        ("{\"body_base64\":\"?\"}", "not base64"),
        ("{\"body\":\"1\",\"headers\":{\"a\":[]}}", "header \"a\""),
        ("{\"body\":\"1\",\"delay\":\"soon\"}", "the delay has to be"),
        ("{\"body\":\"1\",\"delay\":-1}", "the delay has to be"),
        ("{\"body\":\"1\",\"id\":\"\"}", "the id is empty"),
    ] {
        let shown = refused(&format!("{good}{line}\n"));
        assert!(
            shown.starts_with("in, line 2: ") && shown.contains(what),
            "{shown}"
        );
    }
}

#[test]
fn a_body_above_the_limit_is_refused_with_both_numbers() {
    let shown = refused(&format!("{{\"body\":\"{}\"}}", "x".repeat(65)));
    assert!(
        shown.contains("65 bytes") && shown.contains("at most 64"),
        "{shown}"
    );
}

#[test]
fn a_line_without_end_is_not_read_to_its_end() {
    let endless = std::io::BufReader::new(std::io::repeat(b'x'));
    let mut lines = Lines::new(endless, "in".to_owned(), defaults());
    let Some(Err(bad)) = lines.next() else {
        panic!("an endless line was accepted")
    };
    assert!(bad.place().contains("longer than"), "{}", bad.place());
}

#[test]
fn what_a_message_does_not_say_comes_from_the_arguments() {
    let defaults = Defaults {
        key: Some("k".to_owned()),
        headers: vec![
            ("a".to_owned(), "1".to_owned()),
            ("b".to_owned(), "2".to_owned()),
        ],
        delay: Duration::from_secs(9),
        ..defaults()
    };
    let line = r#"{"body":"x","headers":{"a":"own"}}"#;
    let entry = defaults.parse(line.as_bytes(), 1).unwrap();
    assert_eq!(entry.message.partition_key.unwrap().as_str(), "k");
    assert_eq!(entry.message.headers.get("a"), Some("own"));
    assert_eq!(entry.message.headers.get("b"), Some("2"));
    assert_eq!(entry.delay, Duration::from_secs(9));
}
