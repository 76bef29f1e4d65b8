/** `espalier/server`: an OpenAI-compatible server inside any Node process. */
export { createServer, type EspalierServer, type ServerOptions } from './server.ts';
