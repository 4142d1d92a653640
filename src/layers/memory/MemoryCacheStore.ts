/**
 * Caches in the memory of a {@link MemoryHub}.
 *
 * A space is one map; `reset` replaces it, however large it is.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import { CacheStore } from "../../services/CacheStore.ts"
import { Instance } from "../../services/Instance.ts"
import { ExpiringMap } from "../../services/internal/ExpiringMap.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import type { Payload } from "../../services/Payload.ts"
import { MemoryHub } from "./MemoryHub.ts"

interface Space {
  /** Kept as the answers they are given out as. */
  readonly entries: ExpiringMap<Exit.Success<Payload>>
  /** Loads on their way, by key; whoever writes or removes the key takes them out. */
  readonly reservations: Map<string, Set<object>>
}

/**
 * Makes the store of one instance.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<CacheStore["Service"], never, MemoryHub | Instance> = Effect.gen(function* () {
  const hub = yield* MemoryHub
  const link = hub.link((yield* Instance).id)
  const { now } = hub.timers
  const spaces = spacesOf(hub)

  const spaceOf = (name: string): Space =>
    getOrMake(spaces, name, () => ({ entries: new ExpiringMap(now), reservations: new Map() }))

  const find = (name: string, key: string): Exit.Success<Payload | undefined> =>
    spaces.get(name)?.entries.get(key) ?? miss

  return CacheStore.of({
    system: "memory",
    local: true,
    // A hit in memory costs little more than its clock reading: not even a closure.
    get: (name, key) => (link.connected ? find(name, key) : link.runEffect(() => find(name, key))),
    getMany: (name, keys) => link.run(() => keys.map((key) => find(name, key).value)),
    set: (name, entries, ttl) =>
      link.run(() => {
        const space = spaceOf(name)
        for (const { key, payload } of entries) {
          space.reservations.delete(key)
          space.entries.set(key, answer(payload), ttl)
        }
      }),
    del: (name, keys) =>
      link.run(() => {
        const space = spaceOf(name)
        let deleted = 0
        for (const key of keys) {
          space.reservations.delete(key)
          if (space.entries.delete(key)) deleted++
        }
        return deleted
      }),
    reset: (name) =>
      link.run(() => {
        spaces.delete(name)
      }),
    keys: (name) => link.run(() => spaceOf(name).entries.keys()),
    ttl: (name, key) =>
      link.run(() => {
        const entry = spaceOf(name).entries.entry(key)
        return entry === undefined ? undefined : entry.expiresAt - now()
      }),
    reserve: (name, key) =>
      link.run(() => {
        const { reservations } = spaceOf(name)
        const reservation = {}
        const taken = reservations.get(key)
        if (taken === undefined) reservations.set(key, new Set([reservation]))
        else taken.add(reservation)
        return reservation
      }),
    fill: (name, key, reservation, payload, ttl) =>
      link.run(() => {
        const space = spaceOf(name)
        if (!use(space, key, reservation as object)) return false
        space.entries.set(key, answer(payload), ttl)
        return true
      }),
    abandon: (name, key, reservation) =>
      link.run(() => {
        use(spaceOf(name), key, reservation as object)
      })
  })
})

const spacesOf = (hub: MemoryHub["Service"]): Map<string, Space> => hub.part("cache", () => new Map<string, Space>())

const answer = <A>(value: A): Exit.Success<A> => Exit.succeed(value) as Exit.Success<A>
const miss = answer(undefined)

const use = (space: Space, key: string, reservation: object): boolean => {
  const taken = space.reservations.get(key)
  if (taken === undefined || !taken.delete(reservation)) return false
  if (taken.size === 0) space.reservations.delete(key)
  return true
}

/**
 * A cache entry as the hub has it.
 *
 * @since 0.2.0
 */
export interface EntryState {
  /** What one named cache of one app is called by. */
  readonly space: string
  readonly key: string
  /** Encoded. */
  readonly value: unknown
  /** Milliseconds; `Infinity` without a ttl. */
  readonly expiresIn: number
}

/**
 * The live cache entries on a hub, for tests to look at.
 *
 * @since 0.2.0
 */
export const inspect = (hub: MemoryHub["Service"]): ReadonlyArray<EntryState> =>
  [...spacesOf(hub)].flatMap(([space, { entries }]) =>
    entries.remaining().map(([key, expiresIn]) => ({ space, key, value: entries.get(key)!.value.tree, expiresIn }))
  )

/**
 * Provides `CacheStore`.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<CacheStore, never, MemoryHub | Instance> = Layer.effect(CacheStore, make)
