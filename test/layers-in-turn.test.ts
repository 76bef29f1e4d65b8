import { expect, test } from 'vitest';
import { LayersInTurn } from '../lib/prune/ahead.ts';

/** Layers that are there when they are told to be. */
function slowLayers() {
  const asked: number[] = [];
  const disposed: string[] = [];
  const ends = new Map<number, { resolve: (layer: string) => void; reject: (error: Error) => void }>();
  const layers = new LayersInTurn<string>({
    load(layer) {
      asked.push(layer);
      return new Promise((resolve, reject) => ends.set(layer, { resolve, reject }));
    },
    dispose: (layer) => disposed.push(layer),
  });
  return { layers, asked, disposed, ends };
}

test('a layer that was begun is loaded once, any other when it is asked for', async () => {
  const { layers, asked, disposed, ends } = slowLayers();
  layers.begin(3);
  expect(asked).toEqual([3]);
  const third = layers.take(3);
  ends.get(3)!.resolve('third');
  expect(await third).toBe('third');
  const fourth = layers.take(4);
  expect(asked).toEqual([3, 4]);
  ends.get(4)!.resolve('fourth');
  expect(await fourth).toBe('fourth');
  await layers[Symbol.asyncDispose]();
  expect(disposed).toEqual([]);
});

test('what goes wrong ahead is thrown when the layer is asked for', async () => {
  const { layers, ends } = slowLayers();
  layers.begin(1);
  ends.get(1)!.reject(new Error('NaN in layer 1'));
  // An error that nobody handles would end the process before this.
  await new Promise((resolve) => setImmediate(resolve));
  await expect(layers.take(1)).rejects.toThrow('NaN in layer 1');
});

test('a layer that was begun and not taken is waited for and disposed of', async () => {
  const { layers, disposed, ends } = slowLayers();
  layers.begin(1);
  const end = layers[Symbol.asyncDispose]();
  ends.get(1)!.resolve('first');
  await end;
  expect(disposed).toEqual(['first']);
});

test('an end is an end where a layer that was begun fails', async () => {
  const { layers, disposed, ends } = slowLayers();
  layers.begin(1);
  const end = layers[Symbol.asyncDispose]();
  ends.get(1)!.reject(new Error('NaN in layer 1'));
  await end;
  expect(disposed).toEqual([]);
});
