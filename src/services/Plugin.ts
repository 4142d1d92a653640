/**
 * A plugin: an Effect that requires the services it uses.
 *
 * ```ts
 * const names = Plugin.namespace("async-task-manager")
 * const Cancel = names.topic("task.cancel", Schema.Struct({ id: Schema.String }))
 *
 * export const AsyncTasks = Plugin.make(names.name, {
 *   load: PubSub.subscribe(Cancel, ({ id }) => stopLocalTask(id))
 * })
 * ```
 *
 * What a plugin requires and how it can fail is inferred from its phases; a host
 * that lacks a requirement does not compile. A plugin imports services only,
 * never layers.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Cache from "./Cache.ts"
import * as Validate from "./internal/validate.ts"
import * as Job from "./Job.ts"
import type { InvalidInput } from "./Reason.ts"
import * as SyncMessage from "./SyncMessage.ts"
import * as Topic from "./Topic.ts"

/**
 * A plugin called `Name`, whose phases fail with `E` and require `R`.
 *
 * @since 0.1.0
 */
export interface Plugin<out Name extends string, out E = never, out R = never> {
  readonly name: Name
  /** Names of the plugins whose phases run before this one's. */
  readonly dependsOn: ReadonlyArray<string>
  /** Runs before any plugin's `load`: subscribe to what must not be missed. */
  readonly beforeLoad: Effect.Effect<void, E, R | Scope.Scope>
  /** Starts the plugin's work. */
  readonly load: Effect.Effect<void, E, R | Scope.Scope>
  /** Why the declaration cannot be used, if it cannot; reported by the host. */
  readonly invalid: InvalidInput | undefined
}

/**
 * Any plugin.
 *
 * @since 0.1.0
 */
export type Any = Plugin<string, any, any>

/**
 * What {@link make} takes. Everything a phase acquires with its Scope is released
 * when the plugin is disabled or the host stops.
 *
 * @since 0.1.0
 */
export interface Definition<E1, R1, E2, R2, A, RD, RE, R3, R4> {
  /** Plugins, or their names, that must be there and start first. Default: none. */
  readonly dependsOn?: ReadonlyArray<string | Any> | undefined
  /** Default: nothing. */
  readonly beforeLoad?: Effect.Effect<unknown, E1, R1> | undefined
  /** Default: nothing. */
  readonly load?: Effect.Effect<unknown, E2, R2> | undefined
  /** The plugin's sync channel, subscribed to before `beforeLoad` runs. Default: none. */
  readonly sync?: Sync<A, RD, RE, R3, R4> | undefined
}

/**
 * A plugin's sync channel and what to do with its messages.
 *
 * @since 0.1.0
 */
export interface Sync<A, RD, RE, R, R2> extends SyncMessage.Receiver<A, R, R2> {
  readonly message: SyncMessage.SyncChannel<A, RD, RE>
}

/**
 * `T`, as the arguments tell it: not as the place where the plugin is used would have
 * it, since a host takes any plugin and would make it one that requires anything.
 */
type Inferred<T> = [T][T extends unknown ? 0 : never]

/**
 * Makes a plugin.
 *
 * @since 0.1.0
 */
export const make = <
  const Name extends string,
  E1 = never,
  R1 = never,
  E2 = never,
  R2 = never,
  A = never,
  RD = never,
  RE = never,
  R3 = never,
  R4 = never
>(
  name: Name,
  definition: Definition<E1, R1, E2, R2, A, RD, RE, R3, R4>
): Plugin<
  Name,
  Inferred<E1 | E2 | ([A] extends [never] ? never : SyncMessage.SyncMessageError)>,
  Inferred<Exclude<R1 | R2 | RD | R3 | R4, Scope.Scope> | ([A] extends [never] ? never : SyncMessage.SyncMessage)>
> => {
  const { sync } = definition
  const subscribed = sync === undefined ? Effect.void : SyncMessage.subscribe(sync.message, sync)
  return {
    name,
    dependsOn: (definition.dependsOn ?? []).map((plugin) => (typeof plugin === "string" ? plugin : plugin.name)),
    beforeLoad: Effect.andThen(subscribed, definition.beforeLoad ?? Effect.void),
    load: definition.load ?? Effect.void,
    invalid: Validate.name("name", name)
  } as Plugin<Name, any, any>
}

/**
 * Names that carry a plugin's name, so that what one plugin declares never meets
 * what another does.
 *
 * @since 0.1.0
 */
export interface Namespace<Name extends string> {
  readonly name: Name
  /** A key, channel or lock name of the plugin: `name:key`. */
  readonly key: (key: string) => string
  /** {@link Topic.make} with the plugin's name. */
  readonly topic: typeof Topic.make
  /** {@link Job.make} with the plugin's name. */
  readonly job: typeof Job.make
  /** {@link SyncMessage.make} with the plugin's name: its one sync channel. */
  readonly sync: <S extends Schema.Constraint>(
    schema: S,
    options?: Parameters<typeof SyncMessage.make>[2]
  ) => SyncMessage.SyncChannel<S["Type"], S["DecodingServices"], S["EncodingServices"]>
  /** {@link Cache.make} with the plugin's name. */
  readonly cache: typeof Cache.make
}

/**
 * Makes the namespace of a plugin.
 *
 * @since 0.1.0
 */
export const namespace = <const Name extends string>(name: Name): Namespace<Name> => {
  const key = (key: string) => Validate.address(name, key)
  // An empty name stays empty: whoever uses it is told so.
  const named = (local: string) => (local === "" ? "" : key(local))
  return {
    name,
    key,
    topic: (channel, schema) => Topic.make(named(channel), schema),
    job: (channel, schema, options) => Job.make(named(channel), schema, options),
    sync: (schema, options) => SyncMessage.make(name, schema, options),
    cache: (cacheName, schema, options) => Cache.make(named(cacheName), schema, options)
  }
}
