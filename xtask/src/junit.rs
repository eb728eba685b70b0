//! Reads the outcome of each test out of nextest's JUnit report.
//!
//! nextest cannot say that a running test found nothing to do, so a test
//! prints `SKIP: reason` and passes; the report keeps the output of passed
//! tests and this module turns those into skips.

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// With the reason that the test printed.
    Skipped(String),
}

/// One test of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    /// `crate::binary test::name`
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// Failed at first and passed when it was tried again.
    pub(crate) flaky: bool,
}

fn unescaped(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        result.push_str(&rest[..start]);
        rest = &rest[start..];
        let entity = rest.find(';').map(|end| &rest[1..end]).unwrap_or_default();
        let decoded = match entity {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            other => other
                .strip_prefix("#x")
                .map(|hex| u32::from_str_radix(hex, 16))
                .or_else(|| other.strip_prefix('#').map(str::parse))
                .and_then(Result::ok)
                .and_then(char::from_u32),
        };
        match decoded {
            Some(decoded) => {
                result.push(decoded);
                rest = &rest[entity.len() + 2..];
            }
            None => {
                result.push('&');
                rest = &rest[1..];
            }
        }
    }
    result.push_str(rest);
    result
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let start = tag.find(&format!(" {name}=\""))? + name.len() + 3;
    let end = tag[start..].find('"')?;
    Some(unescaped(&tag[start..start + end]))
}

/// Reads a report; text that is not one gives no cases.
pub(crate) fn cases(report: &str) -> Vec<Case> {
    report
        .split("<testcase ")
        .skip(1)
        .map(|part| {
            let part = part.split("</testcase>").next().unwrap_or(part);
            let tag = format!(" {}", part.split('>').next().unwrap_or(part));
            let name = format!(
                "{} {}",
                attribute(&tag, "classname").unwrap_or_default(),
                attribute(&tag, "name").unwrap_or_default()
            );
            // A test that passed when it was tried again has a `flakyFailure`: the runner's
            // output calls it FLAKY, and `.config/nextest.toml` says where that is let pass.
            let failed = ["<failure", "<error"].iter().any(|tag| part.contains(tag));
            let reason = part.lines().find_map(|line| {
                let line = line.rsplit_once("<system-out>").map_or(line, |(_, text)| text);
                let line = line.rsplit_once("<system-err>").map_or(line, |(_, text)| text);
                let reason = line.trim_start().strip_prefix("SKIP: ")?;
                Some(
                    unescaped(reason.split("</system-").next().unwrap_or(reason)).trim().to_owned(),
                )
            });
            let outcome = match (failed, reason) {
                (true, _) => Outcome::Failed,
                (false, Some(reason)) => Outcome::Skipped(reason),
                (false, None) => Outcome::Passed,
            };
            Case {
                name,
                outcome,
                flaky: part.contains("<flakyFailure") || part.contains("<flakyError"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="pure" tests="3" failures="1" errors="0">
  <testsuite name="banger-types" tests="3">
    <testcase name="name::a" classname="banger-types" timestamp="x" time="0.1">
    </testcase>
    <testcase name="name::b" classname="banger-types" time="0.1">
      <failure message="x" type="test failure">SKIP: no</failure>
      <system-out>SKIP: no</system-out>
    </testcase>
    <testcase name="name::c" classname="banger-types" time="0.1">
      <system-out>
running 1 test
test name::c ... ok
</system-out>
      <system-err>SKIP: root: needs &lt;root&gt; &amp; more</system-err>
    </testcase>
    <testcase name="name::d" classname="banger-types" time="0.1"/>
  </testsuite>
</testsuites>"#;

    #[test]
    fn outcomes_are_read() {
        let found = cases(REPORT);
        let outcomes: Vec<_> = found.iter().map(|case| case.outcome.clone()).collect();
        assert_eq!(
            outcomes,
            [
                Outcome::Passed,
                Outcome::Failed,
                Outcome::Skipped("root: needs <root> & more".to_owned()),
                Outcome::Passed
            ]
        );
        assert_eq!(found[2].name, "banger-types name::c");
    }

    #[test]
    fn garbage_is_no_case() {
        assert_eq!(cases(""), []);
        assert_eq!(cases("<testsuite>"), []);
        assert_eq!(unescaped("a & b &; &#x110000; &#65;"), "a & b &; &#x110000; A");
    }
}
