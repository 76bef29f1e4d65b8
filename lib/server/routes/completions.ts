/** POST /v1/completions. */
import { promptIds } from '../../runtime/generate.ts';
import type { Model } from '../../runtime/model.ts';
import type { Tokenizer } from '../../tokenizer/tokenizer.ts';
import { HttpError } from '../errors.ts';
import { requestedFormat } from '../formats.ts';
import { TokenPlaces } from '../logprobs.ts';
import { answer } from '../reply.ts';
import { type CompletionRequest, completionRequest } from '../schemas.ts';
import { type App, requireTokenizer, type Service } from '../service.ts';
import { CompletionWriter, type Echo } from '../writers.ts';

/** Tokens of an answer where a completion does not say, as OpenAI has it. */
const defaultTokens = 16;
/** Prompts of one completion. */
const maxPrompts = 64;

const form = { prefix: 'cmpl', object: 'text_completion', chunkObject: 'text_completion' };

export function completionRoutes(app: App, service: Service): void {
  app.post('/v1/completions', { schema: { body: completionRequest } }, async ({ body }, reply) => {
    await answer(service, reply, body, form, async (signal) => {
      const { model } = service;
      const maxTokens = body.max_tokens ?? defaultTokens;
      if (maxTokens === 0 && body.echo !== true)
        throw new HttpError(400, 'max_tokens: 0 needs echo: true', { param: 'max_tokens' });
      const topLogprobs = body.logprobs ?? undefined;
      const prompts = await promptsOf(service, body);
      const tokenizer = topLogprobs === undefined ? undefined : requireTokenizer(model, 'logprobs');
      const echoes =
        body.echo === true ? await Promise.all(prompts.map((ids) => echoOf(model, ids, body, signal))) : [];
      return {
        work: { prompts, maxTokens, topLogprobs, format: requestedFormat(body) },
        writer: (index, prompt) => new CompletionWriter(index, tokenizer, echoes[prompt]),
      };
    });
    return reply;
  });
}

/** The prompt's text is that of its tokens, less special ones. */
async function echoOf(
  model: Model,
  ids: readonly number[],
  { logprobs }: CompletionRequest,
  signal: AbortSignal,
): Promise<Echo> {
  const tokenizer: Tokenizer = requireTokenizer(model, 'echo');
  const text = tokenizer.decode(ids, { skipSpecialTokens: true });
  if (logprobs == null) return { text, tokens: undefined };
  const places = new TokenPlaces(tokenizer);
  const scores = await model.score(ids, { topLogprobs: logprobs, signal });
  return { text, tokens: scores.map((score, i) => places.place(ids[i]!, score)) };
}

async function promptsOf(
  { model }: Service,
  { prompt, n, best_of }: CompletionRequest,
): Promise<(readonly number[])[]> {
  const isList = Array.isArray(prompt) && (prompt.length === 0 || typeof prompt[0] !== 'number');
  const prompts = (isList ? prompt : [prompt]) as (string | number[])[];
  const isEmpty = prompts.length === 0 || prompts.some(({ length }) => length === 0);
  if (isEmpty) throw new HttpError(400, 'prompt is empty', { param: 'prompt' });
  if (best_of != null && (n ?? 1) > 1) throw new HttpError(400, 'best_of is less than n', { param: 'best_of' });
  if (prompts.length * (n ?? 1) > maxPrompts) {
    throw new HttpError(
      400,
      `${prompts.length} prompts, each answered ${n ?? 1} times: at most ${maxPrompts} answers`,
      { param: 'prompt' },
    );
  }
  return await Promise.all(prompts.map((each) => promptIds(model, each)));
}
