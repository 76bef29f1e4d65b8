/** What expert pruning makes of the experts of one part of a layer. Plain data that can be stored as JSON. */

export interface ExpertMember {
  readonly expert: number;
  /** Share of the mean; those of an expert's members add up to 1. */
  readonly weight: number;
}

export interface ExpertPlan {
  /** Each new expert as the weighted mean of old ones; with one member it is that one, bit for bit. */
  readonly experts: readonly (readonly ExpertMember[])[];
  /** Each new router row as the mean of old ones; with one it is that one, bit for bit. */
  readonly routerRows: readonly (readonly number[])[];
  /** The expert that each new router row leads to. */
  readonly expertOfRow: readonly number[];
  /** Whether the inner channels of members are permuted to match those of the first before the mean. */
  readonly align: boolean;
}

const identity = (count: number) => Array.from({ length: count }, (_, i) => i);

/** Keeps experts of the given indices, in their old order, with their router rows. */
export function keeping(kept: readonly number[]): ExpertPlan {
  const sorted = [...kept].sort((a, b) => a - b);
  return {
    experts: sorted.map((expert) => [{ expert, weight: 1 }]),
    routerRows: sorted.map((expert) => [expert]),
    expertOfRow: identity(sorted.length),
    align: false,
  };
}

/** One expert and one router row a cluster, each the mean of its members. */
export function averaging(clusters: readonly (readonly ExpertMember[])[]): ExpertPlan {
  return {
    experts: clusters,
    routerRows: clusters.map((members) => members.map(({ expert }) => expert)),
    expertOfRow: identity(clusters.length),
    align: false,
  };
}

/** One expert a cluster; the router keeps the rows of all members, which share it. */
export function sharing(clusters: readonly (readonly ExpertMember[])[], align: boolean): ExpertPlan {
  const expertOfRow: number[] = [];
  for (const [cluster, members] of clusters.entries()) for (const { expert } of members) expertOfRow[expert] = cluster;
  return { experts: clusters, routerRows: identity(expertOfRow.length).map((row) => [row]), expertOfRow, align };
}

/** Whether several router rows lead to one expert. */
export function sharesExperts({ experts, expertOfRow }: ExpertPlan): boolean {
  return expertOfRow.length > experts.length;
}

/** Members with weights in proportion to `amounts`, equal where these are all 0. */
export function weighted(members: readonly number[], amounts: ArrayLike<number>): ExpertMember[] {
  const total = members.reduce((sum, expert) => sum + amounts[expert]!, 0);
  return members.map((expert) => ({ expert, weight: total > 0 ? amounts[expert]! / total : 1 / members.length }));
}
