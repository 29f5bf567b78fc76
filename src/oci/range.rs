//! Byte ranges: of pulls that are resumed (RFC 9110, section 14), and of chunked pushes (distribution specification,
//! "Pushing a blob in chunks").

use std::ops::Range;

/// What a `Range` header asks of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// The whole: no header, another unit, several ranges, or nonsense, all of which may be ignored.
    Whole,
    Part(Range<u64>),
    /// A range that begins behind the end, or backwards.
    Unsatisfiable,
}

impl RangeRequest {
    /// Reads the header against a blob of `size_bytes`.
    pub fn parse(header: Option<&str>, size_bytes: u64) -> Self {
        let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
            return Self::Whole;
        };
        let Some((first, last)) = spec.trim().split_once('-') else { return Self::Whole };
        let (first, last) = (number(first), number(last));
        match (first, last) {
            (Number::Is(first), Number::Is(last)) if last < first => Self::Unsatisfiable,
            (Number::Is(first), _) if first >= size_bytes => Self::Unsatisfiable,
            (Number::Is(first), Number::Is(last)) => {
                Self::Part(first..last.saturating_add(1).min(size_bytes))
            }
            (Number::Is(first), Number::Empty) => Self::Part(first..size_bytes),
            (Number::Empty, Number::Is(0)) => Self::Unsatisfiable,
            (Number::Empty, Number::Is(_)) if size_bytes == 0 => Self::Unsatisfiable,
            (Number::Empty, Number::Is(tail)) => Self::Part(size_bytes.saturating_sub(tail)..size_bytes),
            _ => Self::Whole,
        }
    }
}

enum Number {
    Is(u64),
    Empty,
    Junk,
}

fn number(text: &str) -> Number {
    match text.trim() {
        "" => Number::Empty,
        // All digits, so what cannot be parsed is too large: it lies behind the end of everything.
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Number::Is(digits.parse().unwrap_or(u64::MAX))
        }
        _ => Number::Junk,
    }
}

/// The bytes of a chunk as its `Content-Range` states them: `0-1023`, `bytes 0-1023/2048` or `bytes 0-1023/*`.
/// `None` if it is malformed.
pub fn parse_content_range(header: &str) -> Option<Range<u64>> {
    let spec = header.trim();
    let spec = spec.strip_prefix("bytes").map_or(spec, |rest| rest.trim_start_matches(['=', ' ']));
    let (first, last) = spec.split('/').next()?.split_once('-')?;
    let (Number::Is(first), Number::Is(last)) = (number(first), number(last)) else { return None };
    // Nothing has a byte behind the last number.
    last.checked_add(1).filter(|end| first < *end).map(|end| first..end)
}

/// Reads whatever bytes as either header: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Ok(header) = str::from_utf8(bytes) else { return };
    for size_bytes in [0, 1, 1000, u64::MAX] {
        if let RangeRequest::Part(part) = RangeRequest::parse(Some(header), size_bytes) {
            assert!(part.start < part.end && part.end <= size_bytes, "{part:?} of {size_bytes}");
        }
    }
    if let Some(chunk) = parse_content_range(header) {
        assert!(chunk.start < chunk.end, "{chunk:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn single_ranges_are_read() {
        let cases = [
            ("bytes=0-", RangeRequest::Part(0..100)),
            ("bytes=10-19", RangeRequest::Part(10..20)),
            ("bytes=90-500", RangeRequest::Part(90..100)),
            ("bytes=-10", RangeRequest::Part(90..100)),
            ("bytes=-500", RangeRequest::Part(0..100)),
            ("bytes=99-99", RangeRequest::Part(99..100)),
            ("bytes=100-", RangeRequest::Unsatisfiable),
            ("bytes=500-0", RangeRequest::Unsatisfiable),
            ("bytes=-0", RangeRequest::Unsatisfiable),
            ("bytes=99999999999999999999-", RangeRequest::Unsatisfiable),
            ("bytes=90-99999999999999999999", RangeRequest::Part(90..100)),
            ("bytes=-99999999999999999999", RangeRequest::Part(0..100)),
            ("bytes=0-1,5-6", RangeRequest::Whole),
            ("bytes=-", RangeRequest::Whole),
            ("bytes=a-b", RangeRequest::Whole),
            ("items=0-5", RangeRequest::Whole),
        ];
        for (header, wanted) in cases {
            assert_eq!(RangeRequest::parse(Some(header), 100), wanted, "{header}");
        }
        assert_eq!(RangeRequest::parse(None, 100), RangeRequest::Whole);
        assert_eq!(RangeRequest::parse(Some("bytes=0-"), 0), RangeRequest::Unsatisfiable);
    }

    #[test]
    fn content_ranges_are_read_in_the_forms_that_clients_send() {
        for header in ["0-16777215", "bytes 0-16777215/2048", "bytes 0-16777215/*", "bytes=0-16777215"] {
            assert_eq!(parse_content_range(header), Some(0..16_777_216), "{header}");
        }
        let behind_all = "18446744073709551615-18446744073709551615";
        let found_by_fuzzing = "    bytes=99999999999999999999-999999999999999999999";
        for header in ["", "bytes", "5", "5-1", "a-b", "-5", "bytes 5-/10", behind_all, found_by_fuzzing] {
            assert_eq!(parse_content_range(header), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_blob(first in 0_u64..300, last in 0_u64..300, size in 0_u64..200) {
            if let RangeRequest::Part(part) = RangeRequest::parse(Some(&format!("bytes={first}-{last}")), size) {
                prop_assert!(part.start < part.end && part.end <= size);
            }
        }
    }
}
