//! Both ends of a connection against each other, and the server end against hostile bytes.
