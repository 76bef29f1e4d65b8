/** What the times say, as tables. */

/** What is to be reached, each against the peer of the same run. */
const goals = [
  { what: 'decode', of: 'Espalier dense bf16', over: 'llama.cpp BF16', atLeast: 1 },
  { what: 'decode', of: 'Espalier 50 % bf16', over: 'llama.cpp BF16', atLeast: 1.55 },
  { what: 'decode', of: 'Espalier dense int4', over: 'llama.cpp Q4_0', atLeast: 1.5 },
  { what: 'decode', of: 'Espalier 50 % int4', over: 'llama.cpp Q4_0', atLeast: 1.9 },
  { what: 'prefill', of: 'Espalier dense bf16', over: 'llama.cpp BF16', atLeast: 8 },
];

/**
 * Rates in tokens/s. Decoding is given by the median token of all rounds, which a stall of a few milliseconds does not
 * change, by the mean of all, which holds the stalls too, and by the median token of the best round.
 * @param {object} times in milliseconds, a list for each round: `prefill`, `decode`
 * @param {number} promptLength of `prefill`
 */
export function summarise({ name, contender, prefill, decode }, promptLength) {
  const rate = (milliseconds, tokens = 1) => (1000 * tokens) / milliseconds;
  const all = decode.flat();
  return {
    name,
    bytesPerToken: contender.bytesPerToken,
    loadSeconds: contender.loadSeconds,
    prefill: rate(median(prefill.flat()), promptLength),
    decode: rate(median(all)),
    decodeMean: rate(all.reduce((sum, time) => sum + time, 0) / all.length),
    decodeBest: Math.max(...decode.map((round) => rate(median(round)))),
    prefillRounds: prefill.map((round) => rate(round[0], promptLength)),
    decodeRounds: decode.map((round) => rate(median(round))),
  };
}

/** @param {ReturnType<typeof summarise>[]} rows */
export function contenderTable(rows) {
  return table(
    ['contender', 'MB / token', 'load s', 'prefill 512 tok/s', 'decode tok/s', 'mean', 'best round'],
    rows.map((row) => [
      row.name,
      (row.bytesPerToken / 1e6).toFixed(0),
      row.loadSeconds.toFixed(1),
      row.prefill.toFixed(0),
      ...[row.decode, row.decodeMean, row.decodeBest].map((value) => value.toFixed(1)),
    ]),
  );
}

/** @param {ReturnType<typeof summarise>[]} rows */
export function comparisonTable(rows) {
  const comparisons = goals.map(({ what, of, over, atLeast }) => {
    const [ours, theirs] = [of, over].map((name) => rows.find((row) => row.name === name));
    const ratio = (field) => ours[field] / theirs[field];
    if (what === 'prefill') return { what, of, over, atLeast, ratio: ratio('prefill') };
    return { what, of, over, atLeast, ratio: ratio('decode'), mean: ratio('decodeMean') };
  });
  const markdown = table(
    ['ratio', 'at least', 'found', 'of means'],
    comparisons.map(({ what, of, over, atLeast, ratio, mean }) => [
      `${what}: ${of} over ${over}`,
      String(atLeast),
      ratio.toFixed(2),
      mean?.toFixed(2) ?? '',
    ]),
  );
  return { markdown, comparisons };
}

function table(head, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

function median(list) {
  return list.toSorted((a, b) => a - b)[list.length >> 1];
}
