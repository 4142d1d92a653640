/**
 * Collections with their compiled validators, kept equal on every instance.
 *
 * A change is made in the {@link CollectionStore} under a lock of its collection, applied to this instance's memory,
 * and announced to the others by a sync message, upon which they load that collection again.
 *
 * Where the store has transactions, the change and its message are one, inside the lock. A caller may have begun the
 * transaction: the lock is then held until that has ended, and memory follows when it has, here and elsewhere.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberMap from "effect/FiberMap"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import * as Lock from "../../services/Lock.ts"
import * as Plugin from "../../services/Plugin.ts"
import * as SyncMessage from "../../services/SyncMessage.ts"
import * as Transaction from "../../services/Transaction.ts"
import type { StoreError } from "../StoreError.ts"
import { type Collection, compile, type Field, type Row, type Validator } from "./Collection.ts"
import { CollectionStore } from "./CollectionStore.ts"

/**
 * @since 0.1.0
 */
export const names = Plugin.namespace("data-source-main")

const Change = Schema.Union([
  Schema.Struct({ type: Schema.Literal("syncCollection"), collection: Schema.String }),
  Schema.Struct({ type: Schema.Literal("removeField"), collection: Schema.String, field: Schema.String })
])

/**
 * What the instances tell each other: a collection is not what it was.
 *
 * @since 0.1.0
 */
export const SchemaChanged = names.sync(Change)

/**
 * @since 0.1.0
 */
export class CollectionNotFound extends Schema.TaggedError<CollectionNotFound>("cohort/plugins/CollectionNotFound")(
  "CollectionNotFound",
  { collection: Schema.String },
  { httpApiStatus: 404 }
) {
  override get message(): string {
    return `there is no collection "${this.collection}"`
  }
}

/**
 * @since 0.1.0
 */
export class FieldNotFound extends Schema.TaggedError<FieldNotFound>("cohort/plugins/FieldNotFound")(
  "FieldNotFound",
  { collection: Schema.String, field: Schema.String },
  { httpApiStatus: 404 }
) {
  override get message(): string {
    return `collection "${this.collection}" has no field "${this.field}"`
  }
}

/**
 * There is a collection or a field of this name already.
 *
 * @since 0.1.0
 */
export class NameTaken extends Schema.TaggedError<NameTaken>("cohort/plugins/NameTaken")(
  "NameTaken",
  { name: Schema.String },
  { httpApiStatus: 409 }
) {
  override get message(): string {
    return `"${this.name}" is taken`
  }
}

/**
 * A row is not what its collection takes.
 *
 * @since 0.1.0
 */
export class InvalidRow extends Schema.TaggedError<InvalidRow>("cohort/plugins/InvalidRow")(
  "InvalidRow",
  { collection: Schema.String, detail: Schema.String },
  { httpApiStatus: 400 }
) {
  override get message(): string {
    return `${this.collection}: ${this.detail}`
  }
}

/**
 * What can go wrong with a change.
 *
 * @since 0.1.0
 */
export type ChangeError = StoreError | Lock.LockError | SyncMessage.SyncMessageError

/**
 * @since 0.1.0
 */
export class Collections extends Context.Service<
  Collections,
  {
    /** The collections as this instance knows them. */
    readonly list: Effect.Effect<ReadonlyArray<Collection>>
    readonly get: (name: string) => Effect.Effect<Collection, CollectionNotFound>
    /** The compiled validator, as of now: take it for a batch, not for a lifetime. */
    readonly validator: (name: string) => Effect.Effect<Validator, CollectionNotFound>
    readonly create: (collection: Collection) => Effect.Effect<void, NameTaken | ChangeError>
    readonly addField: (
      collection: string,
      field: Field
    ) => Effect.Effect<void, CollectionNotFound | NameTaken | ChangeError>
    /** Removes a field and what the rows have in it; one instance at a time. */
    readonly removeField: (
      collection: string,
      field: string
    ) => Effect.Effect<void, CollectionNotFound | FieldNotFound | ChangeError>
    /** Validates a row and stores it under an id; storing it twice leaves one. */
    readonly putRow: (
      collection: string,
      id: string,
      row: unknown
    ) => Effect.Effect<Row, CollectionNotFound | InvalidRow | StoreError>
    /** Loads one collection again. */
    readonly reload: (name: string) => Effect.Effect<void, StoreError>
    /** Loads all collections again. */
    readonly reloadAll: Effect.Effect<void, StoreError>
  }
>()("cohort/plugins/data-source-main/Collections") {}

const reloadBackoff = Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("30 seconds")]).pipe(
  Schedule.jittered
)

interface Compiled {
  readonly collection: Collection
  readonly validator: Validator
}

/**
 * Provides {@link Collections}.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<Collections, never, CollectionStore | Lock.Lock | SyncMessage.SyncMessage> =
  Layer.effect(
    Collections,
    Effect.gen(function* () {
      const store = yield* CollectionStore
      const lock = yield* Lock.Lock
      const sync = yield* SyncMessage.SyncMessage
      let compiled = new Map<string, Compiled>()

      const compiledOf = (collection: Collection): Compiled => ({ collection, validator: compile(collection) })

      const find = (name: string) =>
        Effect.suspend(() => {
          const found = compiled.get(name)
          return found === undefined ? Effect.fail(new CollectionNotFound({ collection: name })) : Effect.succeed(found)
        })

      // One at a time: of two loads, the one that was asked last must also be the one that counts.
      const loading = yield* Semaphore.make(1)

      const reload = (name: string) =>
        Effect.map(store.get(name), (found) => {
          if (Option.isSome(found)) compiled.set(name, compiledOf(found.value))
          else compiled.delete(name)
        }).pipe(loading.withPermit)

      const stored = (name: string) =>
        Effect.flatMap(
          store.get(name),
          Option.match({
            onNone: () => Effect.fail(new CollectionNotFound({ collection: name })),
            onSome: Effect.succeed
          })
        )

      /** One change of a collection at a time, cluster-wide; the state decided on is the store's, not this memory's. */
      const exclusively = <A, E>(collection: string, change: Effect.Effect<A, E>) =>
        Transaction.runExclusive(names.key(`fields.beforeDestroy:${collection}`), store.transaction(change), {
          ttl: "10 seconds"
        }).pipe(Effect.provideService(Lock.Lock, lock))

      const reloading = yield* FiberMap.make<string>()

      /** Loads a collection again after its change, until it succeeds: nobody tells this instance of its own changes. */
      const follow = (name: string) =>
        Effect.catch(reload(name), (error) =>
          Effect.andThen(
            Effect.annotateLogs(Effect.logWarning("Changed, but not loaded again yet", error), { collection: name }),
            FiberMap.run(reloading, name, Effect.retry(reload(name), reloadBackoff))
          )
        )

      /** Has all instances follow a change that was made in the store, when it is there to stay. */
      const announce = (name: string, message: typeof Change.Type) =>
        Effect.andThen(Transaction.onEnd(Effect.asVoid(follow(name))), sync.publish(SchemaChanged, message))

      return Collections.of({
        list: Effect.sync(() => Array.from(compiled.values(), ({ collection }) => collection)),
        get: (name) => Effect.map(find(name), ({ collection }) => collection),
        validator: (name) => Effect.map(find(name), ({ validator }) => validator),

        create: (collection) =>
          Effect.gen(function* () {
            if (!(yield* store.create(collection))) return yield* new NameTaken({ name: collection.name })
            yield* announce(collection.name, { type: "syncCollection", collection: collection.name })
          }).pipe(store.transaction),

        addField: (name, field) =>
          exclusively(
            name,
            Effect.gen(function* () {
              const collection = yield* stored(name)
              if (collection.fields.some((other) => other.name === field.name)) {
                return yield* new NameTaken({ name: field.name })
              }
              yield* store.addField(name, field)
              yield* announce(name, { type: "syncCollection", collection: name })
            })
          ),

        removeField: (name, field) =>
          exclusively(
            name,
            Effect.gen(function* () {
              const collection = yield* stored(name)
              if (!collection.fields.some((other) => other.name === field)) {
                return yield* new FieldNotFound({ collection: name, field })
              }
              yield* store.removeField(name, field)
              yield* announce(name, { type: "removeField", collection: name, field })
            })
          ),

        putRow: (name, id, input) =>
          Effect.gen(function* () {
            const { validator } = yield* find(name)
            const row = validator(input)
            if (Result.isFailure(row)) return yield* new InvalidRow({ collection: name, detail: row.failure })
            yield* store.putRows(name, [{ id, row: row.success }])
            return row.success
          }),

        reload,
        reloadAll: Effect.map(store.list, (collections) => {
          compiled = new Map(collections.map((collection) => [collection.name, compiledOf(collection)]))
        }).pipe(loading.withPermit)
      })
    })
  )
