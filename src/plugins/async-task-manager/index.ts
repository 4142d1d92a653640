/**
 * Tasks that run on any instance.
 *
 * @since 0.1.0
 */
export * as Task from "./Task.ts"
export * as TaskStore from "./TaskStore.ts"
export * as TaskStoreSql from "./TaskStoreSql.ts"
export * as Tasks from "./Tasks.ts"
