//! Everything that can be wrong on purpose, to show that the checks find it.

use picloud::engine::defect::Defect;
use picloud::server::rules;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The engine's, or its procedures' on disk.
    Engine(Defect),
    /// The server's rules'.
    Rules(rules::Defect),
    /// The server answers before anything is durable.
    AnswerBeforeDurable,
    /// Pages of the journal overtake each other.
    PagesOutOfOrder,
    /// A device that starts again after a power cut takes its disk for what it was.
    PowerCutUnnoticed,
}
