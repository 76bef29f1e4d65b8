/** Milliseconds that `work` takes for each of `items`, one after the other. */
export async function timeEach(items, work) {
  const times = [];
  for (const item of items) {
    const start = performance.now();
    await work(item);
    times.push(performance.now() - start);
  }
  return times;
}
