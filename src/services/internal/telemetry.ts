/** How operations show up in traces. */
import * as Effect from "effect/Effect"

/**
 * One client span for an operation that crosses the wire. Operations of the
 * memory backends take less time than a span costs, and get none.
 */
export const traced = <A, E, R>(
  system: string,
  name: string,
  attributes: Record<string, unknown>,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  system === "memory"
    ? effect
    : Effect.useSpan(name, { kind: "client", attributes: { "cohort.system": system, ...attributes } }, () => effect)
