/** GET /v1/models, POST /tokenize, POST /detokenize: what the model is and how it cuts text. */
import { requireModel } from '../errors.ts';
import { detokenizeRequest, tokenizeRequest } from '../schemas.ts';
import { type App, requireTokenizer, type Service } from '../service.ts';

export function modelRoutes(app: App, service: Service): void {
  const { model, modelName } = service;
  const description = {
    id: modelName,
    object: 'model',
    created: Math.floor(Date.now() / 1000),
    owned_by: 'espalier',
    max_model_len: model.spec.maxPositions,
  };
  app.get('/v1/models', async () => ({ object: 'list', data: [description] }));
  app.get('/v1/models/:id', async ({ params }) => {
    requireModel((params as { id: string }).id, modelName);
    return description;
  });
  app.post('/tokenize', { schema: { body: tokenizeRequest } }, async ({ body }) => {
    if (body.model !== undefined) requireModel(body.model, modelName);
    const tokens = [
      ...requireTokenizer(model).encode(body.prompt, { addSpecialTokens: body.add_special_tokens ?? true }),
    ];
    return { tokens, count: tokens.length, max_model_len: model.spec.maxPositions };
  });
  app.post('/detokenize', { schema: { body: detokenizeRequest } }, async ({ body }) => {
    if (body.model !== undefined) requireModel(body.model, modelName);
    return { prompt: requireTokenizer(model).decode(body.tokens) };
  });
}
