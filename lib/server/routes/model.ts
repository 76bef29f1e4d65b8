/** GET /v1/models, POST /tokenize, POST /detokenize: what the model is and how it cuts text. */
import { encodeAtMost } from '../../tokenizer/long-text.ts';
import { HttpError, requireModel } from '../errors.ts';
import { detokenizeRequest, tokenizeRequest } from '../schemas.ts';
import { type App, requireTokenizer, type Service } from '../service.ts';

/** Contexts that a text to cut may fill: whoever asks how long it is may find it too long. */
const contextsOfText = 4;

export function modelRoutes(app: App, service: Service): void {
  const { model, modelName, context } = service;
  const maxTokens = contextsOfText * context;
  const description = {
    id: modelName,
    object: 'model',
    created: Math.floor(Date.now() / 1000),
    owned_by: 'espalier',
    max_model_len: context,
  };
  app.get('/v1/models', async () => ({ object: 'list', data: [description] }));
  app.get('/v1/models/:id', async ({ params }) => {
    requireModel((params as { id: string }).id, modelName);
    return description;
  });
  app.post('/tokenize', { schema: { body: tokenizeRequest } }, async ({ body }) => {
    if (body.model !== undefined) requireModel(body.model, modelName);
    const tokens = [
      ...encodeAtMost(requireTokenizer(model), body.prompt, maxTokens, {
        addSpecialTokens: body.add_special_tokens ?? true,
      }),
    ];
    return { tokens, count: tokens.length, max_model_len: context };
  });
  app.post('/detokenize', { schema: { body: detokenizeRequest } }, async ({ body }) => {
    if (body.model !== undefined) requireModel(body.model, modelName);
    if (body.tokens.length > maxTokens) {
      throw new HttpError(400, `tokens has ${body.tokens.length} ids, at most ${maxTokens} are taken`, {
        param: 'tokens',
      });
    }
    return { prompt: requireTokenizer(model).decode(body.tokens) };
  });
}
