/**
 * Where collections and their rows are kept.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { identity } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { StoreError } from "../StoreError.ts"
import type { Collection, Field, Row } from "./Collection.ts"

/**
 * The store that every instance shares. Changes of one collection's fields are
 * made one at a time by its caller, under a lock.
 *
 * @since 0.1.0
 */
export class CollectionStore extends Context.Service<
  CollectionStore,
  {
    /**
     * Runs changes as one where the store has transactions (SQL): all are kept, or none. Others run them one by one.
     * Inside a transaction of the caller's, they are kept when that is.
     */
    readonly transaction: <A, E, R>(changes: Effect.Effect<A, E, R>) => Effect.Effect<A, E | StoreError, R>
    readonly list: Effect.Effect<ReadonlyArray<Collection>, StoreError>
    readonly get: (name: string) => Effect.Effect<Option.Option<Collection>, StoreError>
    /** `false` when there is one of that name. */
    readonly create: (collection: Collection) => Effect.Effect<boolean, StoreError>
    readonly addField: (collection: string, field: Field) => Effect.Effect<void, StoreError>
    /** Removes a field and what the rows have in it. */
    readonly removeField: (collection: string, field: string) => Effect.Effect<void, StoreError>
    /** Writes rows by id: writing one twice leaves one. */
    readonly putRows: (
      collection: string,
      rows: ReadonlyArray<{ readonly id: string; readonly row: Row }>
    ) => Effect.Effect<void, StoreError>
    readonly countRows: (collection: string) => Effect.Effect<number, StoreError>
    /** In the order they were first written. */
    readonly rows: (
      collection: string,
      range: { readonly offset: number; readonly limit: number }
    ) => Effect.Effect<ReadonlyArray<Row>, StoreError>
  }
>()("cohort/plugins/data-source-main/CollectionStore") {}

/**
 * In the memory of this process; give the instances of a cluster one such layer.
 *
 * @since 0.1.0
 */
export const layerMemory: Layer.Layer<CollectionStore> = Layer.sync(CollectionStore, () => {
  const collections = new Map<string, { collection: Collection; readonly rows: Map<string, Row> }>()

  const change = (name: string, f: (fields: ReadonlyArray<Field>) => ReadonlyArray<Field>) => {
    const entry = collections.get(name)
    if (entry !== undefined) entry.collection = { ...entry.collection, fields: f(entry.collection.fields) }
    return entry
  }

  return CollectionStore.of({
    transaction: identity,
    list: Effect.sync(() => Array.from(collections.values(), ({ collection }) => collection)),
    get: (name) => Effect.sync(() => Option.fromUndefinedOr(collections.get(name)?.collection)),
    create: (collection) =>
      Effect.sync(() => {
        if (collections.has(collection.name)) return false
        collections.set(collection.name, { collection, rows: new Map() })
        return true
      }),
    addField: (name, field) =>
      Effect.sync(() => {
        change(name, (fields) => [...fields, field])
      }),
    removeField: (name, field) =>
      Effect.sync(() => {
        const entry = change(name, (fields) => fields.filter((other) => other.name !== field))
        if (entry === undefined) return
        for (const [id, { [field]: _, ...rest }] of entry.rows) entry.rows.set(id, rest)
      }),
    putRows: (name, rows) =>
      Effect.sync(() => {
        const entry = collections.get(name)
        if (entry !== undefined) for (const { id, row } of rows) entry.rows.set(id, row)
      }),
    countRows: (name) => Effect.sync(() => collections.get(name)?.rows.size ?? 0),
    rows: (name, { limit, offset }) =>
      Effect.sync(() => [...(collections.get(name)?.rows.values() ?? [])].slice(offset, offset + limit))
  })
})
