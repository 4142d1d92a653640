/**
 * The port that a cache backend implements.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Payload } from "./Payload.ts"
import type { Unavailable } from "./Reason.ts"

/**
 * One entry to write.
 *
 * @since 0.1.0
 */
export interface Entry {
  readonly key: string
  readonly payload: Payload
}

/**
 * Permission to store what a load is about to return; see {@link CacheStore}.
 *
 * @since 0.1.0
 */
export type Reservation = object | string

/**
 * What a backend promises:
 *
 * - A `space` is one named cache of one app; spaces never touch each other, and
 *   keys may hold any character.
 * - `reset` empties a space in time that does not depend on the rest of the store.
 * - `ttl` is in milliseconds, positive and finite; `undefined` keeps an entry until
 *   it is removed. An expired entry is as good as none in every operation.
 * - **A reservation loses against whatever comes after it.** `reserve` is taken
 *   before a load; `fill` stores its result unless a `set`, `del` or `reset` of
 *   that key has happened since, on any instance.
 * - Every effect fails with `Unavailable` within a bound when the backend is away.
 *
 * As with every port, the service calls a function inside a running effect and
 * runs what it returns at once and once: a store in memory may act in the call
 * and answer with an `Exit`.
 *
 * @since 0.1.0
 */
export class CacheStore extends Context.Service<
  CacheStore,
  {
    /** `"memory"`, `"redis"`, `"rabbitmq"`: names the backend in spans and errors. */
    readonly system: string
    /** Reads are memory reads, which answer in the call: keeping entries `near` as well is of no use. Default `false`. */
    readonly local?: boolean
    readonly get: (space: string, key: string) => Effect.Effect<Payload | undefined, Unavailable>
    /** In the order of `keys`, duplicates included. */
    readonly getMany: (
      space: string,
      keys: ReadonlyArray<string>
    ) => Effect.Effect<ReadonlyArray<Payload | undefined>, Unavailable>
    /** Writes all entries with one ttl. */
    readonly set: (
      space: string,
      entries: ReadonlyArray<Entry>,
      ttl: number | undefined
    ) => Effect.Effect<void, Unavailable>
    /** Removes keys; returns how many there were. */
    readonly del: (space: string, keys: ReadonlyArray<string>) => Effect.Effect<number, Unavailable>
    readonly reset: (space: string) => Effect.Effect<void, Unavailable>
    /** The live keys, in no particular order. */
    readonly keys: (space: string) => Effect.Effect<ReadonlyArray<string>, Unavailable>
    /** Milliseconds left; `Infinity` without a ttl, `undefined` without an entry. */
    readonly ttl: (space: string, key: string) => Effect.Effect<number | undefined, Unavailable>
    readonly reserve: (space: string, key: string) => Effect.Effect<Reservation, Unavailable>
    /** Whether the payload was stored. Uses the reservation up. */
    readonly fill: (
      space: string,
      key: string,
      reservation: Reservation,
      payload: Payload,
      ttl: number | undefined
    ) => Effect.Effect<boolean, Unavailable>
    /** Gives a reservation back unused. */
    readonly abandon: (space: string, key: string, reservation: Reservation) => Effect.Effect<void, Unavailable>
  }
>()("cohort/services/CacheStore") {}
