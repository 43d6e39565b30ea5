//! A join link as a QR code in text.

use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};

/// Returns the code drawn with half blocks, dark on light whatever the terminal's colours are when
/// `colour` says that escapes may be used, else drawn for a dark terminal. Nothing when the text
/// is too long for a code.
#[must_use]
pub fn draw(text: &str, colour: bool) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    if !colour {
        // Blocks are light on a dark terminal: dark modules are the gaps.
        let drawn = code
            .render::<Dense1x2>()
            .dark_color(Dense1x2::Light)
            .light_color(Dense1x2::Dark)
            .build();
        return Some(drawn);
    }
    let drawn =
        code.render::<Dense1x2>().dark_color(Dense1x2::Dark).light_color(Dense1x2::Light).build();
    let painted: Vec<String> =
        drawn.lines().map(|line| format!("\x1b[30;107m{line}\x1b[0m")).collect();
    Some(painted.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_link_fits_a_terminal_of_eighty_columns() {
        let link = format!("picloud://{}:46000/#{}", "h".repeat(60), "x".repeat(87));
        let drawn = draw(&link, false).unwrap();
        assert!(drawn.lines().all(|line| line.chars().count() <= 78));
        assert!(drawn.lines().count() <= 40);
        assert!(!drawn.contains('\x1b'));
    }
}
