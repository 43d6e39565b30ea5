//! Faults that the simulator can put into the engine on purpose, to show that its checks find them.
//!
//! Each is asked for where it would be ([`super::trees::Trees::has_defect`],
//! [`super::folder::Folder::has_defect`]). What the programs use answers with a constant no, so that
//! nothing of it is left in them, and nothing in them can switch one on.

/// A fault in what the engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// A directory that cannot be read counts as empty.
    UnreadableIsEmpty,
    /// A file that was renamed counts as read, whatever was written to it meanwhile.
    RenameHidesEdit,
    /// A deletion elsewhere beats an edit here.
    DeletionBeatsEdit,
    /// Of two edits the one here is written over, without a conflict copy.
    ConflictDropped,
    /// What a commit asked for is not remembered while its answer is out.
    SentForgotten,
    /// The answer to a commit counts for what the file holds by then.
    AnswerCoversLaterEdit,
    /// What an exchange took away is not examined.
    ExchangeUnexamined,
    /// A staged content gets its name before it is durable, and is told as done before that is.
    DoneBeforeDurable,
    /// The trash is emptied after its grace without another look.
    TrashUnexamined,
    /// What a crash left in the trash is thrown away.
    LeftoversDropped,
    /// What a crash left parked is left there.
    ParkedForgotten,
    /// The cursor is remembered, and what it is the cursor of is not.
    CursorAheadOfNodes,
    /// What was removed because it is left out on a device counts as deleted there.
    LeftOutIsDeleted,
    /// What was left out has its merge base still when it is wanted again.
    BaseOutlivesLeavingOut,
    /// In a folder that only receives, a deletion is told all the same.
    ReceiverDeletes,
    /// What a change does not tell is agreed on with it.
    UntoldIsAgreedOn,
}
