//! Checks the documents.
