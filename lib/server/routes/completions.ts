/** POST /v1/completions and POST /v1/chat/completions. */
import { randomUUID } from 'node:crypto';
import type { FastifyReply } from 'fastify';
import { promptIds } from '../../runtime/generate.ts';
import type { ChatMessage } from '../../tokenizer/chat-template.ts';
import { Answers } from '../answers.ts';
import { HttpError, requireModel, streamError } from '../errors.ts';
import { EventStream, endSignal } from '../event-stream.ts';
import {
  type ChatRequest,
  type CommonRequest,
  type CompletionRequest,
  chatRequest,
  completionRequest,
} from '../schemas.ts';
import type { App, Service } from '../service.ts';

/** Tokens of an answer where a completion does not say, as OpenAI has it. */
const completionTokens = 16;
/** Prompts of one completion. */
const maxPrompts = 64;

/** How the two differ: names, and where the text stands. */
interface Shape {
  readonly prefix: string;
  readonly object: string;
  readonly chunkObject: string;
  choice(index: number, text: string, finishReason: string): object;
  /** The choice of a first chunk; undefined for none. */
  opening?(index: number): object;
  delta(index: number, text: string, finishReason: string | null): object;
}

const completionShape: Shape = {
  prefix: 'cmpl',
  object: 'text_completion',
  chunkObject: 'text_completion',
  choice: (index, text, finish_reason) => ({ index, text, logprobs: null, finish_reason }),
  delta: (index, text, finish_reason) => ({ index, text, logprobs: null, finish_reason }),
};

const chatShape: Shape = {
  prefix: 'chatcmpl',
  object: 'chat.completion',
  chunkObject: 'chat.completion.chunk',
  choice: (index, content, finish_reason) => ({
    index,
    message: { role: 'assistant', content, refusal: null },
    logprobs: null,
    finish_reason,
  }),
  opening: (index) => ({ index, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null }),
  delta: (index, content, finish_reason) => ({
    index,
    delta: content === '' ? {} : { content },
    logprobs: null,
    finish_reason,
  }),
};

export function completionRoutes(app: App, service: Service): void {
  app.post('/v1/completions', { schema: { body: completionRequest } }, async ({ body }, reply) => {
    await answer(service, reply, body, completionShape, async () => ({
      prompts: await completionPrompts(service, body),
      maxTokens: body.max_tokens ?? completionTokens,
    }));
    return reply;
  });
  app.post('/v1/chat/completions', { schema: { body: chatRequest } }, async ({ body }, reply) => {
    await answer(service, reply, body, chatShape, async () => ({
      prompts: [await promptIds(service.model, messagesOf(body))],
      maxTokens: body.max_completion_tokens ?? body.max_tokens ?? undefined,
    }));
    return reply;
  });
}

interface Work {
  readonly prompts: readonly (readonly number[])[];
  readonly maxTokens: number | undefined;
}

async function answer(
  service: Service,
  reply: FastifyReply,
  request: CommonRequest,
  shape: Shape,
  prepare: () => Promise<Work>,
): Promise<void> {
  requireModel(request.model, service.modelName);
  if (request.stream_options != null && request.stream !== true) {
    throw new HttpError(400, 'stream_options needs stream: true', { param: 'stream_options' });
  }
  // Before anything is computed: a burst must not cost more than its refusal.
  using _slot = service.admission.take();
  const signal = endSignal(reply, service.stopping);
  const { prompts, maxTokens } = await prepare();
  using timer = service.metrics.start(signal);
  const answers = new Answers(service.model, service.context, prompts, request, maxTokens, signal, timer.token);
  const head = {
    id: `${shape.prefix}-${randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: service.modelName,
  };
  if (request.stream === true) {
    const events = () => new EventStream(reply, service.stallTimeout, signal);
    await stream(events, answers, shape, head, request.stream_options?.include_usage === true);
    timer.finish(answers.usage);
    return;
  }
  const found = await answers.whole();
  timer.finish(answers.usage);
  await reply.send({
    ...head,
    object: shape.object,
    choices: found.map(({ text, finishReason }, index) => shape.choice(index, text, finishReason)),
    usage: answers.usage,
  });
}

async function stream(
  open: () => EventStream,
  answers: Answers,
  shape: Shape,
  head: object,
  includeUsage: boolean,
): Promise<void> {
  const pieces = answers.pieces();
  // What fails before the first token is still an answer with a status.
  let step = await pieces.next();
  const events = open();
  const chunk = (choices: object[], usage: object | null = null) =>
    events.send({ ...head, object: shape.chunkObject, choices, ...(includeUsage ? { usage } : {}) });
  try {
    for (let i = 0; shape.opening !== undefined && i < answers.count; i++) await chunk([shape.opening(i)]);
    for (; !step.done; step = await pieces.next()) {
      const { index, text, finishReason } = step.value;
      if (text !== '' || finishReason !== undefined) await chunk([shape.delta(index, text, finishReason ?? null)]);
    }
    if (includeUsage) await chunk([], answers.usage);
    await events.send('[DONE]');
  } catch (error) {
    await events.send(streamError(error));
  } finally {
    await pieces.return();
    events.end();
  }
}

async function completionPrompts(
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
      {
        param: 'prompt',
      },
    );
  }
  return await Promise.all(prompts.map((each) => promptIds(model, each)));
}

/** Content in parts is text in pieces; templates know only whole texts. */
function messagesOf({ messages }: ChatRequest): ChatMessage[] {
  return messages.map(({ role, content, name }) => ({
    role: role === 'developer' ? 'system' : role,
    content: typeof content === 'string' ? content : content.map(({ text }) => text).join(''),
    ...(name === undefined ? {} : { name }),
  }));
}
