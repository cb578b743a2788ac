//! The rows of logits of a sequence on the host.

use bytemuck::Zeroable;

use super::huge_pages;

/// After a long prompt, the buffer shrinks to this many rows if it has more than twice as many.
pub const KEPT_ROWS: usize = 40;

/// Rows of logits of consecutive positions. ONNX Runtime writes float32 logits here, and they are read here.
pub struct LogitRows {
    rows: Vec<f32>,
    columns: usize,
    /// The position of the first row.
    first: usize,
    /// The end of the last pass's rows, as an index into `rows`.
    end: usize,
}

impl LogitRows {
    pub fn new(columns: usize) -> Self {
        LogitRows { rows: Vec::new(), columns, first: 0, end: 0 }
    }

    /// Forget all rows, and keep the buffer for rows of the same length.
    pub fn clear(&mut self) {
        (self.first, self.end) = (0, 0);
    }

    /// Bytes of the buffer.
    pub fn bytes(&self) -> usize {
        size_of::<f32>() * self.rows.capacity()
    }

    /// The row of a position that is held.
    pub fn row(&self, position: usize) -> &[f32] {
        let start = (position - self.first) * self.columns;
        &self.rows[start..start + self.columns]
    }

    /// The position behind the last row.
    pub fn next(&self) -> usize {
        self.first + self.end / self.columns
    }

    /// Replace all rows. The first one is that of position `first`.
    pub fn set(&mut self, first: usize, rows: &[Vec<f32>]) {
        self.rows.clear();
        rows.iter().for_each(|row| self.rows.extend_from_slice(row));
        (self.first, self.end) = (first, self.rows.len());
    }

    /// Make room for the rows of `count` positions from `position` on. Rows from `keep` on that come before them stay.
    pub fn reserve(&mut self, position: usize, count: usize, keep: usize) -> ort::Result<&mut [f32]> {
        let end = position + count;
        let keep = keep.max(self.first);
        if keep >= position {
            self.first = position; // the usual case: no earlier row is needed
        } else if (end - self.first) * self.columns > self.rows.len() && keep > self.first {
            let kept = (keep - self.first) * self.columns..(position - self.first) * self.columns;
            self.rows.copy_within(kept, 0);
            self.first = keep;
        }
        let (kept, needed) = ((position - self.first) * self.columns, (end - self.first) * self.columns);
        lengthen(&mut self.rows, needed, kept)?;
        self.end = needed;
        Ok(&mut self.rows[kept..needed])
    }

    /// Shrink the buffer to what usual passes need. Rows from `keep` on stay.
    pub fn trim(&mut self, keep: usize) {
        let from = (keep.max(self.first) - self.first) * self.columns;
        let least = (self.end - from).max(KEPT_ROWS * self.columns);
        if self.rows.len() > 2 * least {
            self.rows.copy_within(from..self.end, 0);
            self.first = self.first.max(keep);
            self.end -= from;
            self.rows.truncate(least);
            self.rows.shrink_to_fit();
        }
    }

    /// The last `count` rows that were reserved.
    pub fn last(&mut self, count: usize) -> &mut [f32] {
        &mut self.rows[self.end - count * self.columns..self.end]
    }
}

/// Make a buffer at least `length` long, and keep its first `kept` elements. Running out of memory is an error, not an
/// abort.
///
/// The system provides zeroed pages when they are first written, which matters for the many rows of a prompt.
pub fn lengthen<T: Zeroable + Copy>(buffer: &mut Vec<T>, length: usize, kept: usize) -> ort::Result<()> {
    if buffer.len() < length {
        let failed = |()| ort::Error::new(format!("not enough memory for logits of {} bytes", length * size_of::<T>()));
        let mut longer = bytemuck::allocation::try_zeroed_vec(length).map_err(failed)?;
        huge_pages::advise_new(&mut longer);
        longer[..kept].copy_from_slice(&buffer[..kept]);
        *buffer = longer;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_shrinks_after_a_long_prompt() {
        let mut logits = LogitRows::new(2);
        let mut write = |position: usize, count: usize, keep: usize| {
            let rows = logits.reserve(position, count, keep).unwrap();
            rows.iter_mut().enumerate().for_each(|(index, value)| *value = (2 * position + index) as f32);
            logits.trim(keep);
            for kept in keep.max(position)..position + count {
                assert_eq!(logits.row(kept), [2.0 * kept as f32, 2.0 * kept as f32 + 1.0], "row {kept}");
            }
            logits.rows.capacity() / 2
        };
        assert_eq!(write(1, 200, 200), KEPT_ROWS);
        assert_eq!(write(201, 1, 201), KEPT_ROWS);
        assert_eq!(write(202, 2 * KEPT_ROWS, 202), 2 * KEPT_ROWS, "a long draft keeps its room");
        assert_eq!(write(202, 1, 202), 2 * KEPT_ROWS);
        assert_eq!(write(203, 300, 403), 100, "rows that are kept stay");
    }

    #[test]
    fn rows_of_logits_stay_where_they_were_written() {
        let mut logits = LogitRows::new(2);
        let mut write = |position: usize, count: usize, keep: usize| {
            let rows = logits.reserve(position, count, keep).unwrap();
            assert_eq!(rows.len(), 2 * count);
            for (index, value) in rows.iter_mut().enumerate() {
                *value = (10 * (position + index / 2) + index % 2) as f32;
            }
            for kept in keep.min(position)..position + count {
                if kept >= keep {
                    assert_eq!(logits.row(kept), [10.0 * kept as f32, 10.0 * kept as f32 + 1.0], "row {kept}");
                }
            }
        };
        write(1, 5, 5); // a prompt
        write(6, 1, 6); // nothing to keep: from the start
        write(7, 1, 6); // one to keep
        write(8, 3, 6);
        write(11, 1, 9); // moves
        write(12, 4, 10);
        write(10, 1, 10); // after a rollback
        write(11, 9, 10);
    }
}
