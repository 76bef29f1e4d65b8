/** From a request for answers to the reply: admission, then all answers whole, or in chunks as they come. */
import { randomUUID } from 'node:crypto';
import type { FastifyReply } from 'fastify';
import { Answers, type Work } from './answers.ts';
import { HttpError, requireModel, streamError } from './errors.ts';
import { EventStream, endSignal } from './event-stream.ts';
import type { CommonRequest } from './schemas.ts';
import type { Service } from './service.ts';
import type { Writer } from './writers.ts';

/** What the API calls things. */
export interface Form {
  /** Of ids. */
  readonly prefix: string;
  readonly object: string;
  readonly chunkObject: string;
}

export interface Prepared {
  readonly work: Work;
  /** Makes what writes answer number `index`, which is to prompt number `prompt`. */
  writer(index: number, prompt: number): Writer;
}

export async function answer(
  service: Service,
  reply: FastifyReply,
  request: CommonRequest,
  form: Form,
  prepare: (signal: AbortSignal) => Promise<Prepared>,
): Promise<void> {
  requireModel(request.model, service.modelName);
  if (request.stream_options != null && request.stream !== true) {
    throw new HttpError(400, 'stream_options needs stream: true', { param: 'stream_options' });
  }
  // Before anything is computed: a burst must not cost more than its refusal.
  using _slot = service.admission.take();
  const signal = endSignal(reply, service.stopping);
  const { work, writer } = await prepare(signal);
  using timer = service.metrics.start(signal);
  const answers = new Answers(service.model, service.context, work, request, signal, timer.token);
  const writers = Array.from({ length: answers.count }, (_, i) => writer(i, answers.promptOf(i)));
  const head = {
    id: `${form.prefix}-${randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: service.modelName,
  };
  if (request.stream === true) {
    const includeUsage = request.stream_options?.include_usage === true;
    const events = () => new EventStream(reply, service.stallTimeout, signal);
    await stream(events, answers, writers, { ...head, object: form.chunkObject }, includeUsage);
    timer.finish(answers.usage, answers.finishReasons);
    return;
  }
  for await (const { index, ...piece } of answers.pieces()) writers[index]!.take(piece);
  timer.finish(answers.usage, answers.finishReasons);
  const choices = writers.map((each) => each.choice());
  await reply.send({ ...head, object: form.object, choices, usage: answers.usage });
}

async function stream(
  open: () => EventStream,
  answers: Answers,
  writers: readonly Writer[],
  head: object,
  includeUsage: boolean,
): Promise<void> {
  const pieces = answers.pieces();
  // What fails before the first token is still an answer with a status.
  let step = await pieces.next();
  const events = open();
  const chunk = (choices: object[], usage: object | null = null) =>
    events.send({ ...head, choices, ...(includeUsage ? { usage } : {}) });
  try {
    for (const writer of writers) for (const choice of writer.opening()) await chunk([choice]);
    for (; !step.done; step = await pieces.next()) {
      const { index, ...piece } = step.value;
      for (const choice of writers[index]!.delta(piece)) await chunk([choice]);
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
