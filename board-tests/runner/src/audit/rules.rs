//! What real-mode code must not contain, by the names of functions and the files of inlined code.

use super::{finding::Kind, lines::Place};

/// Names that end a search: whatever is behind them, the call alone is one too many.
///
/// An image's own panic handler is `rust_begin_unwind`, its logger `_defmt_*`, its allocator `__rust_*alloc*`.
pub(super) fn forbidden_function(name: &str) -> Option<Kind> {
    let begins = |parts: &[&str]| parts.iter().any(|part| name.starts_with(part));
    let last = name.rsplit("::").next().unwrap_or(name);
    if name.contains("core::panicking::")
        || last == "rust_begin_unwind"
        || matches!(last, "unwrap_failed" | "expect_failed" | "slice_error_fail" | "__rust_start_panic")
        || name.starts_with("core::slice::index::slice_")
        || name.starts_with("core::cell::panic_")
    {
        return Some(Kind::Panic);
    }
    if name.contains("core::fmt::") {
        return Some(Kind::Formatting);
    }
    if begins(&["defmt::", "<defmt::", "_defmt_", "log::", "<log::"]) || name.contains(" as defmt::") {
        return Some(Kind::Logging);
    }
    if begins(&["alloc::", "<alloc::"])
        || ["__rust_alloc", "__rust_realloc", "__rust_dealloc"].iter().any(|what| last.starts_with(what))
    {
        return Some(Kind::Allocation);
    }
    (name == "opal_call").then_some(Kind::Firmware)
}

/// The same for code that was inlined: its name is lost, its file is not.
pub(super) fn forbidden_file(place: &Place) -> Option<Kind> {
    if !place.foreign {
        return None;
    }
    let begins = |part: &str| place.file.starts_with(part);
    if begins("library/core/src/panicking.rs") {
        Some(Kind::Panic)
    } else if begins("library/core/src/fmt/") {
        Some(Kind::Formatting)
    } else if begins("defmt-") || begins("log-") {
        Some(Kind::Logging)
    } else if begins("library/alloc/src/") {
        Some(Kind::Allocation)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_names_are_known_in_every_mangling() {
        let cases = [
            ("core::panicking::panic_fmt", Kind::Panic),
            ("__rustc::rust_begin_unwind", Kind::Panic),
            ("rust_begin_unwind", Kind::Panic),
            ("core::option::unwrap_failed", Kind::Panic),
            ("core::slice::index::slice_index_fail", Kind::Panic),
            ("<core::fmt::Formatter>::pad_integral", Kind::Formatting),
            ("core::fmt::write", Kind::Formatting),
            ("<u64 as core::fmt::Debug>::fmt", Kind::Formatting),
            ("defmt::export::write", Kind::Logging),
            ("_defmt_acquire", Kind::Logging),
            ("alloc::raw_vec::finish_grow", Kind::Allocation),
            ("__rustc::__rust_alloc_zeroed", Kind::Allocation),
            ("opal_call", Kind::Firmware),
        ];
        for (name, kind) in cases {
            assert_eq!(forbidden_function(name), Some(kind), "{name}");
        }
        for name in ["portcullis_ppc_tce::hcall::put", "memcpy", "core::num::checked_add", "my::alloc_page"] {
            assert_eq!(forbidden_function(name), None, "{name}");
        }
    }

    #[test]
    fn inlined_code_is_known_by_its_file() {
        let place =
            |file: &str, foreign| Place { file: file.to_owned(), line: 1, foreign, ..Place::default() };
        assert_eq!(forbidden_file(&place("library/core/src/fmt/mod.rs", true)), Some(Kind::Formatting));
        assert_eq!(forbidden_file(&place("defmt-1.0.1/src/lib.rs", true)), Some(Kind::Logging));
        assert_eq!(forbidden_file(&place("library/alloc/src/boxed.rs", true)), Some(Kind::Allocation));
        assert_eq!(forbidden_file(&place("library/core/src/panicking.rs", true)), Some(Kind::Panic));
        assert_eq!(forbidden_file(&place("library/core/src/num/mod.rs", true)), None);
        assert_eq!(forbidden_file(&place("defmt-own/src/lib.rs", false)), None);
    }
}
