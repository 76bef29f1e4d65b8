/** Whether both engines compute the same model: without this the times mean nothing. */
import { join } from 'node:path';
import { Contender } from './contender.mjs';
import { convertMixtral } from './mixtral-gguf.mjs';

/**
 * Bounds on the mean Kullback-Leibler divergence, in nats. bf16: llama.cpp rounds activations to bf16, so the answers are
 * close, not equal. Q4_0: what rounding this model's weights to four bits may cost. Two neighbouring positions must differ
 * by far more, or agreement would say nothing.
 */
const limits = { bf16: 1e-3, q4_0: 0.5, different: 1 };
/** Logits; where the two likeliest tokens are closer, rounding may swap them. */
const clearGap = 0.2;

/**
 * Compares next-token distributions of a trained checkpoint after each token of a prompt.
 * @param {{ model: string, work: string, threads: number, prompt: number[] }} options
 * @returns {Promise<{ lines: string[], passed: boolean }>}
 */
export async function checkAgreement({ model, work, threads, prompt }) {
  const logitsOf = async (options) => {
    const contender = await Contender.start({ threads, context: 512, ...options });
    try {
      return (await contender.call('logits', prompt)).map(logSoftmax);
    } finally {
      await contender.stop();
    }
  };
  const ours = await logitsOf({ engine: 'espalier', path: model, weights: 'source', activations: 'float32' });
  const theirs = {};
  for (const type of ['BF16', 'Q4_0']) {
    const path = join(work, `check-${type.toLowerCase()}.gguf`);
    await convertMixtral(model, path, type);
    theirs[type] = await logitsOf({ engine: 'llama', path });
  }
  const clear = ours.flatMap((row, i) => (gapOf(row) > clearGap ? [i] : []));
  const agreed = clear.filter((i) => indexOfLargest(ours[i]) === indexOfLargest(theirs.BF16[i]));
  const bf16 = mean(ours.map((row, i) => divergence(row, theirs.BF16[i])));
  const q4_0 = mean(ours.map((row, i) => divergence(row, theirs.Q4_0[i])));
  const different = mean(ours.slice(1).map((row, i) => divergence(row, theirs.BF16[i])));
  const passed =
    bf16 < limits.bf16 &&
    q4_0 < limits.q4_0 &&
    different > limits.different &&
    clear.length > prompt.length / 2 &&
    agreed.length === clear.length;
  const nats = (value) => value.toExponential(2);
  const lines = [
    `next-token distributions after ${prompt.length} random tokens, Espalier bf16 against llama.cpp:`,
    `- BF16: mean KL ${nats(bf16)} nats (limit ${limits.bf16}); same likeliest token in ${agreed.length} of the ` +
      `${clear.length} places where it is clear`,
    `- Q4_0: mean KL ${nats(q4_0)} nats (limit ${limits.q4_0})`,
    `- BF16 one position off: mean KL ${nats(different)} nats (at least ${limits.different})`,
    passed ? 'They agree.' : 'THEY DO NOT AGREE.',
  ];
  return { lines, passed };
}

/** Float64 log-probabilities. */
function logSoftmax(logits) {
  const largest = logits[indexOfLargest(logits)];
  const logSum = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
  return logits.map((logit) => logit - largest - logSum);
}

function divergence(p, q) {
  return p.reduce((sum, logP, i) => sum + Math.exp(logP) * (logP - q[i]), 0);
}

function indexOfLargest(row) {
  return row.reduce((best, value, i) => (value > row[best] ? i : best), 0);
}

function gapOf(row) {
  const [first, second] = row.toSorted((a, b) => b - a);
  return first - second;
}

function mean(list) {
  return list.reduce((sum, value) => sum + value, 0) / list.length;
}
