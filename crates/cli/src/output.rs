//! Writing to stdout and stderr, without a panic when nobody reads.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde_json::Value;

/// Writes text and a line's end to stdout.
///
/// # Errors
///
/// When stdout cannot be written to; a closed pipe is among that.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Writes a JSON value to stdout, on one line.
///
/// # Errors
///
/// As [`print()`].
pub(crate) fn print_json(value: &Value) -> io::Result<()> {
    print(&value.to_string())
}

/// Writes a line to stderr. If nobody reads it, nobody is told.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether a person looks at stderr.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// A count as people read it: `12,345`.
pub(crate) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 message`, `2 messages`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", thousands(count))
}

/// A time as people read it, to a tenth of a second or to the millisecond.
pub(crate) fn brief(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let shown = [0, 999, 1_000, 12_345, 1_234_567].map(thousands);
        assert_eq!(shown, ["0", "999", "1,000", "12,345", "1,234,567"]);
        assert_eq!(counted(1, "message"), "1 message");
        assert_eq!(counted(2_000, "message"), "2,000 messages");
        assert_eq!(brief(Duration::from_millis(80)), "80 ms");
        assert_eq!(brief(Duration::from_millis(1_250)), "1.2 s");
    }
}
