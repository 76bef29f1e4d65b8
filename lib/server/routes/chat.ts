/** POST /v1/chat/completions. */
import { promptIds } from '../../runtime/generate.ts';
import type { ChatMessage } from '../../tokenizer/chat-template.ts';
import { HttpError } from '../errors.ts';
import { answer } from '../reply.ts';
import { type ChatRequest, chatRequest } from '../schemas.ts';
import { type App, requireTokenizer, type Service } from '../service.ts';
import { ChatWriter } from '../writers.ts';

const form = { prefix: 'chatcmpl', object: 'chat.completion', chunkObject: 'chat.completion.chunk' };

export function chatRoutes(app: App, service: Service): void {
  app.post('/v1/chat/completions', { schema: { body: chatRequest } }, async ({ body }, reply) => {
    await answer(service, reply, body, form, async () => {
      const { model } = service;
      const topLogprobs = topLogprobsOf(body);
      const prompts = [await promptIds(model, messagesOf(body))];
      const tokenizer = topLogprobs === undefined ? undefined : requireTokenizer(model, 'logprobs');
      return {
        work: { prompts, maxTokens: body.max_completion_tokens ?? body.max_tokens ?? undefined, topLogprobs },
        writer: (index) => new ChatWriter(index, tokenizer),
      };
    });
    return reply;
  });
}

function topLogprobsOf({ logprobs, top_logprobs }: ChatRequest): number | undefined {
  if (logprobs === true) return top_logprobs ?? 0;
  if (top_logprobs == null || top_logprobs === 0) return undefined;
  throw new HttpError(400, 'top_logprobs needs logprobs: true', { param: 'top_logprobs' });
}

/** Content in parts is text in pieces; templates know only whole texts. */
function messagesOf({ messages }: ChatRequest): ChatMessage[] {
  return messages.map(({ role, content, name }) => ({
    role: role === 'developer' ? 'system' : role,
    content: typeof content === 'string' ? content : content.map(({ text }) => text).join(''),
    ...(name === undefined ? {} : { name }),
  }));
}
