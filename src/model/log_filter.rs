//! What a setting may say of which events are told.

/// The words for how much is told.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks a filter of events: a level, or levels by module, such as `warn,picloud::agent=debug`.
///
/// The library that applies the filter takes any other word for the name of a module, and then
/// nothing else is told: so a mistyped level would silence a program.
///
/// # Errors
/// Says what is wrong, and what would be right.
pub fn check_log_filter(filter: &str) -> Result<(), String> {
    for directive in filter.split(',').map(str::trim) {
        let (module, level) = match directive.split_once('=') {
            Some((module, level)) => (Some(module.trim()), level.trim()),
            None => (None, directive),
        };
        let is_level = LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level));
        let is_module = module.is_none_or(|module| {
            !module.is_empty()
                && module.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
        });
        if !is_level || !is_module {
            return Err(format!(
                "{directive:?} is none of error, warn, info, debug and trace, nor one of them by \
                 module, such as \"picloud=debug\""
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_level_is_not_taken_for_a_module() {
        for good in ["info", "WARN", "off", "warn,picloud::agent=debug", "picloud=trace, error"] {
            assert_eq!(check_log_filter(good), Ok(()), "{good}");
        }
        for bad in
            ["", "loud", "infos", "info,", "picloud", "picloud=loud", "=info", "a b=info", "5"]
        {
            assert!(check_log_filter(bad).is_err(), "{bad}");
        }
        assert_eq!(
            check_log_filter("warn,loud").unwrap_err(),
            "\"loud\" is none of error, warn, info, debug and trace, nor one of them by module, \
             such as \"picloud=debug\""
        );
    }
}
