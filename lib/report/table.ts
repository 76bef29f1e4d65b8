import Table from 'cli-table3';

export interface Column {
  readonly title: string;
  /** Numbers are aligned right. @default 'left' */
  readonly align?: 'left' | 'right';
}

/** A plain table without frames: titles, a rule, rows. */
export function formatTable(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const none = Object.fromEntries(
    ['top', 'top-mid', 'top-left', 'top-right', 'bottom', 'bottom-mid', 'bottom-left', 'bottom-right', 'left', 'right']
      .concat(['mid', 'mid-mid', 'left-mid', 'right-mid'])
      .map((name) => [name, '']),
  );
  const table = new Table({
    chars: { ...none, middle: '  ' },
    colAligns: columns.map(({ align = 'left' }) => align),
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
  });
  const titles = columns.map(({ title }) => title);
  const widths = titles.map((title, i) => Math.max(title.length, ...rows.map((row) => (row[i] ?? '').length)));
  table.push(
    titles,
    widths.map((width) => '─'.repeat(width)),
    ...rows.map((row) => [...row]),
  );
  return table
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');
}
