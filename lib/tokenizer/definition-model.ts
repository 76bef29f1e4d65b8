import { isObject, type JsonObject } from './json.ts';

/** Raises the error that names the file, this field and what was found there. */
export type Fail = (field: string, found: string) => never;

/** Far above any tokenizer in use (half a million), far below what exhausts memory. */
const maxMerges = 2 ** 22;

/**
 * Checks `model` of tokenizer.json: byte-pair encoding, unigram or WordPiece.
 * @returns The model with its type spelled out, and its pieces with their ids.
 */
export function checkModel(
  value: unknown,
  maxId: number,
  fail: Fail,
): { model: JsonObject; pieces: Map<string, number> } {
  if (!isObject(value)) return fail('model', 'is missing');
  // Files from before 2021 leave the type out; only byte-pair encoding has merges.
  const type = value.type ?? ('merges' in value ? 'BPE' : undefined);
  const model = { ...value, type };
  switch (type) {
    case 'BPE': {
      const pieces = checkVocabulary(value.vocab, maxId, fail);
      checkMerges(value.merges, pieces, fail);
      if (value.continuing_subword_prefix || value.end_of_word_suffix) {
        return fail('model', 'marks subwords by a prefix or suffix, which is not supported for BPE');
      }
      checkUnknown(value.unk_token, pieces, fail);
      if (value.byte_fallback === true) checkBytePieces(pieces, fail);
      return { model, pieces };
    }
    case 'WordPiece': {
      const pieces = checkVocabulary(value.vocab, maxId, fail);
      checkUnknown(value.unk_token, pieces, fail);
      return { model, pieces };
    }
    case 'Unigram':
      return { model, pieces: checkUnigram(value, fail) };
    default:
      return fail('model.type', `is ${JSON.stringify(type)}, supported are BPE, Unigram and WordPiece`);
  }
}

function checkVocabulary(value: unknown, maxId: number, fail: Fail): Map<string, number> {
  if (!isObject(value)) return fail('model.vocab', 'is not a map from piece to id');
  const pieces = new Map<string, number>();
  const byId = new Map<number, string>();
  for (const [piece, id] of Object.entries(value)) {
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) > maxId) {
      return fail(
        'model.vocab',
        `gives ${JSON.stringify(piece)} the id ${JSON.stringify(id)}, ids are integers from 0 to ${maxId}`,
      );
    }
    const other = byId.get(id as number);
    if (other !== undefined)
      return fail('model.vocab', `gives id ${id} to both ${JSON.stringify(other)} and ${JSON.stringify(piece)}`);
    byId.set(id as number, piece);
    pieces.set(piece, id as number);
  }
  if (pieces.size === 0) return fail('model.vocab', 'is empty');
  return pieces;
}

/** Every merge joins two pieces into a third, so merging always ends. */
function checkMerges(value: unknown, pieces: ReadonlyMap<string, number>, fail: Fail): void {
  if (!Array.isArray(value)) fail('model.merges', 'is not a list');
  const merges = value as unknown[];
  if (merges.length > maxMerges) fail('model.merges', `has ${merges.length} entries, at most ${maxMerges} are read`);
  const pairs = Array.isArray(merges[0]);
  for (const [i, merge] of merges.entries()) {
    const isPair = Array.isArray(merge);
    const parts: unknown[] = isPair ? merge : typeof merge === 'string' ? merge.split(' ') : [];
    const [left, right] = parts;
    if (isPair !== pairs || parts.length !== 2 || typeof left !== 'string' || typeof right !== 'string') {
      fail(`model.merges[${i}]`, `is ${JSON.stringify(merge)?.slice(0, 80)}, not a pair of pieces`);
    }
    for (const piece of [left, right, `${left}${right}`] as string[]) {
      if (!pieces.has(piece))
        fail(`model.merges[${i}]`, `uses ${JSON.stringify(piece)}, which is not in the vocabulary`);
    }
  }
}

function checkUnknown(value: unknown, pieces: ReadonlyMap<string, number>, fail: Fail): void {
  if (value === undefined || value === null) return;
  if (typeof value !== 'string' || !pieces.has(value))
    fail('model.unk_token', `is ${JSON.stringify(value)}, which is not in the vocabulary`);
}

/** Byte pieces are spelled `<0x00>` to `<0xFF>`; anything else of that length would decode to a byte of its own making. */
function checkBytePieces(pieces: ReadonlyMap<string, number>, fail: Fail): void {
  for (const piece of pieces.keys()) {
    if (/^<0x..>$/u.test(piece) && !/^<0x[0-9A-F]{2}>$/.test(piece))
      fail('model.vocab', `has ${JSON.stringify(piece)}, which is not a byte`);
  }
}

function checkUnigram(model: JsonObject, fail: Fail): Map<string, number> {
  const vocabulary = model.vocab;
  if (!Array.isArray(vocabulary) || vocabulary.length === 0)
    return fail('model.vocab', 'is not a list of [piece, score]');
  const pieces = new Map<string, number>();
  for (const [id, entry] of (vocabulary as unknown[]).entries()) {
    const [piece, score] = Array.isArray(entry) ? (entry as unknown[]) : [];
    if (typeof piece !== 'string' || typeof score !== 'number')
      return fail(`model.vocab[${id}]`, 'is not [piece, score]');
    if (!pieces.has(piece)) pieces.set(piece, id);
  }
  const unknown = model.unk_id;
  if (unknown !== undefined && unknown !== null) {
    if (!Number.isSafeInteger(unknown) || (unknown as number) < 0 || (unknown as number) >= vocabulary.length) {
      return fail('model.unk_id', `is ${JSON.stringify(unknown)}, the vocabulary has ${vocabulary.length} pieces`);
    }
  }
  if (model.byte_fallback === true) checkBytePieces(pieces, fail);
  return pieces;
}
