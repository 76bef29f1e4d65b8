/** llama.cpp as a contender, through node-llama-cpp and the binaries that come with it. */
import { getLlama, LlamaLogLevel, readGgufFileInfo } from 'node-llama-cpp';
import { timeEach } from './clock.mjs';

/** Bits of an element, by the number of its type in the file: F32, Q4_0, BF16. */
const bitsOfType = { 0: 32, 2: 4.5, 30: 16 };

/** @type {import('./contender.mjs').Load} */
export async function load({ path, threads, context: contextSize }) {
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    skipDownload: true,
    progressLogs: false,
    logLevel: LlamaLogLevel.error,
    maxThreads: 0,
  });
  const model = await llama.loadModel({ modelPath: path, gpuLayers: 0, useMmap: true });
  const context = await model.createContext({
    contextSize,
    // A prompt of 512 tokens is one batch, as in Espalier.
    batchSize: 512,
    threads: { ideal: threads, min: threads },
    flashAttention: true,
  });
  const sequence = context.getSequence();
  // A random model may draw an end token; what it draws is thrown away in any case.
  const greedy = { temperature: 0, yieldEogToken: true };
  return {
    bytesPerToken: await bytesPerToken(path),
    // evaluateWithoutGeneratingNewTokens would ask for no logits, and llama.cpp then leaves out the head and the last
    // layer's experts.
    async generate(prompt, forced) {
      await sequence.clearHistory();
      const steps = sequence.evaluate(prompt, greedy);
      const times = await timeEach([undefined, ...forced], (token) => steps.next(token));
      await steps.return();
      return times;
    },
    async logits(tokens) {
      await sequence.clearHistory();
      const results = await sequence.controlledEvaluate(
        tokens.map((token) => [token, { generateNext: { logits: true } }]),
      );
      return results.map(({ next }) => {
        const row = new Array(next.logits.size);
        for (const [token, logit] of next.logits) row[token] = logit;
        return row;
      });
    },
  };
}

/** All matrices and vectors but the embeddings, of the experts those that a token is routed to. */
async function bytesPerToken(path) {
  const { metadata, fullTensorInfo } = await readGgufFileInfo(path);
  const { expert_count: experts, expert_used_count: used } = metadata.llama;
  let bytes = 0;
  for (const { name, dimensions, ggmlType } of fullTensorInfo) {
    if (name === 'token_embd.weight') continue;
    const stored = (dimensions.reduce((product, size) => product * Number(size), 1) * bitsOfType[ggmlType]) / 8;
    bytes += name.includes('_exps') ? (stored * used) / experts : stored;
  }
  return bytes;
}
