/**
 * Real plugins, also the examples.
 *
 * @since 0.1.0
 */
export * as asyncTaskManager from "./async-task-manager/index.ts"
export * as auth from "./auth/index.ts"
export * as dataSourceMain from "./data-source-main/index.ts"
export * as StoreError from "./StoreError.ts"
