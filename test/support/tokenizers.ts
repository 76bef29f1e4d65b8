import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

export const demo = 'models/demo';
const shared = '../shared/models';

/** Folders of checkpoints whose tokenizers the tests compare; those outside the repository only where they are. */
export function checkpoints(): string[] {
  const outside = ['tiny-mixtral', 'mixtral-30m', 'olmoe-17m'].map((name) => join(shared, name));
  const found = outside.filter((folder) => existsSync(folder));
  if (found.length === 0) console.log(`only ${demo} is tested: there is no ${shared}`);
  return [demo, ...found];
}

const scratch = mkdtempSync(join(tmpdir(), 'espalier-tokenizer-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Writes a folder with these files, JSON unless they are text. It is removed after the tests of the file. */
export function folderWith(files: Record<string, unknown>): string {
  const folder = mkdtempSync(join(scratch, 'folder-'));
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(join(folder, name), typeof content === 'string' ? content : JSON.stringify(content));
  }
  return folder;
}

/**
 * A tokenizer.json as SentencePiece models are converted to: word marks, byte pieces for what the vocabulary lacks, no
 * pre-tokenizer, a begin token; its merges are the most frequent pairs of `text`, counted as byte-pair encoding trains.
 */
export function wordMarkTokenizer(text: string, merges: number): Record<string, unknown> {
  const vocab: Record<string, number> = {};
  const add = (piece: string) => {
    vocab[piece] ??= Object.keys(vocab).length;
  };
  for (const piece of ['<unk>', '<s>', '</s>']) add(piece);
  for (let byte = 0; byte < 256; ++byte) add(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
  let words = text.split(' ').map((word) => [...`▁${word}`]);
  for (const word of words) for (const character of word) if (character < '\u3000') add(character);
  const pairs: [string, string][] = [];
  while (pairs.length < merges) {
    const counts = new Map<string, number>();
    for (const word of words) {
      for (let i = 1; i < word.length; ++i) {
        const pair = JSON.stringify([word[i - 1], word[i]]);
        counts.set(pair, (counts.get(pair) ?? 0) + 1);
      }
    }
    const best = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))[0];
    if (best === undefined) break;
    const [left, right] = JSON.parse(best[0]) as [string, string];
    if (left in vocab && right in vocab) {
      pairs.push([left, right]);
      add(left + right);
    }
    words = words.map((word) => {
      const joined: string[] = [];
      for (const piece of word) {
        if (joined.at(-1) === left && piece === right) joined[joined.length - 1] = left + right;
        else joined.push(piece);
      }
      return joined;
    });
  }
  const special = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: ['<unk>', '<s>', '</s>'].map((content, id) => ({ id, content, ...special })),
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab,
      merges: pairs,
    },
  };
}

export const sampleText =
  'The espalier is a tree that is trained flat against a wall, so that the sun reaches every branch. ' +
  'Pruned in the winter, the tree bears more fruit on less wood; the gardener ties the young branches to wires. ' +
  'It was the custom of the old gardens to grow the pear and the apple in this way, and the walls kept them warm.';
