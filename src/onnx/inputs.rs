//! The inputs of passes other than the cache: integers and booleans of the types that the export declares.

use ort::memory::MemoryInfo;
use ort::value::TensorElementType;

use super::binding::Tensor;
use crate::export::Input;

/// An input and its values for the next pass.
pub struct Feed {
    pub input: Input,
    pub numbers: Numbers,
}

/// Values of the type that an input has.
pub enum Numbers {
    Int64(Vec<i64>),
    Int32(Vec<i32>),
    Bool(Vec<u8>),
    /// The attention mask that the cache keeps, which is not copied.
    OfCache,
}

impl Feed {
    /// Without values.
    pub fn new(input: &Input) -> Self {
        Feed { input: input.clone(), numbers: Numbers::of(input.element) }
    }
}

impl Numbers {
    fn of(element: TensorElementType) -> Self {
        match element {
            TensorElementType::Int32 => Numbers::Int32(Vec::new()),
            TensorElementType::Bool => Numbers::Bool(Vec::new()),
            _ => Numbers::Int64(Vec::new()),
        }
    }

    /// Replace the values. The export may decide how many there are, so running out of memory is an error.
    pub fn fill(&mut self, values: impl IntoIterator<Item = i64>) -> ort::Result<()> {
        let values = values.into_iter();
        match self {
            Numbers::Int64(numbers) => refill(numbers, values),
            Numbers::Int32(numbers) => refill(numbers, values.map(|value| value as i32)),
            Numbers::Bool(numbers) => refill(numbers, values.map(|value| u8::from(value != 0))),
            Numbers::OfCache => {
                let mut numbers = Vec::new();
                let result = refill(&mut numbers, values);
                *self = Numbers::Int64(numbers);
                result
            }
        }
    }

    /// Bytes of a number.
    pub fn size(&self) -> usize {
        match self {
            Numbers::Int64(_) | Numbers::OfCache => 8,
            Numbers::Int32(_) => 4,
            Numbers::Bool(_) => 1,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Numbers::Int64(numbers) => bytemuck::cast_slice(numbers),
            Numbers::Int32(numbers) => bytemuck::cast_slice(numbers),
            Numbers::Bool(numbers) => numbers,
            Numbers::OfCache => &[],
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Numbers::Int64(numbers) => numbers.len(),
            Numbers::Int32(numbers) => numbers.len(),
            Numbers::Bool(numbers) => numbers.len(),
            Numbers::OfCache => 0,
        }
    }

    pub fn tensor(&mut self, memory: &MemoryInfo, shape: &[i64]) -> ort::Result<Tensor> {
        match self {
            Numbers::Int64(numbers) => Tensor::over(memory, numbers, TensorElementType::Int64, shape),
            Numbers::Int32(numbers) => Tensor::over(memory, numbers, TensorElementType::Int32, shape),
            Numbers::Bool(numbers) => Tensor::over(memory, numbers, TensorElementType::Bool, shape),
            Numbers::OfCache => Err(ort::Error::new("the attention mask is in the cache")),
        }
    }
}

fn refill<T>(numbers: &mut Vec<T>, values: impl Iterator<Item = T>) -> ort::Result<()> {
    numbers.clear();
    let count = values.size_hint().0;
    numbers
        .try_reserve(count)
        .map_err(|_| ort::Error::new(format!("not enough memory for an input of {count} numbers")))?;
    numbers.extend(values);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_type() {
        let fill = |element| {
            let mut numbers = Numbers::of(element);
            numbers.fill([0, 1, 70_000]).unwrap();
            numbers
        };
        assert!(matches!(fill(TensorElementType::Int64), Numbers::Int64(numbers) if numbers == [0, 1, 70_000]));
        assert!(matches!(fill(TensorElementType::Int32), Numbers::Int32(numbers) if numbers == [0, 1, 70_000]));
        assert!(matches!(fill(TensorElementType::Bool), Numbers::Bool(numbers) if numbers == [0, 1, 1]));
    }

    #[test]
    fn too_many_numbers_are_an_error() {
        crate::onnx::environment(None, 0, None).unwrap(); // errors need it
        for element in [TensorElementType::Int64, TensorElementType::Int32, TensorElementType::Bool] {
            let mut numbers = Numbers::of(element);
            assert!(numbers.fill(std::iter::repeat_n(0, usize::MAX)).is_err());
            assert_eq!(numbers.len(), 0);
        }
    }
}
