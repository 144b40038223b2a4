/* Loads a SavedModel and prints what its signature "serving_default" returns.
 *
 *     saved_model FOLDER INPUT_OPERATION OUTPUT_OPERATION OUTPUT_INDEX \
 *         ROWS COLUMNS NUMBER...
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>

static void check(TF_Status *status) {
  if (TF_GetCode(status) != TF_OK) {
    fprintf(stderr, "%s\n", TF_Message(status));
    exit(1);
  }
}

int main(int argc, char **argv) {
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  const char *tags[] = {"serve"};
  TF_Session *session = TF_LoadSessionFromSavedModel(
      TF_NewSessionOptions(), NULL, argv[1], tags, 1, graph, NULL, status);
  check(status);
  int64_t shape[] = {atoi(argv[5]), atoi(argv[6])};
  size_t count = (size_t)(shape[0] * shape[1]);
  if (argc != 7 + (int)count) return 2;
  TF_Tensor *x =
      TF_AllocateTensor(TF_FLOAT, shape, 2, count * sizeof(float)), *y = NULL;
  for (size_t i = 0; i < count; i++)
    ((float *)TF_TensorData(x))[i] = strtof(argv[7 + i], NULL);
  TF_Output in = {TF_GraphOperationByName(graph, argv[2]), 0};
  TF_Output out = {TF_GraphOperationByName(graph, argv[3]), atoi(argv[4])};
  TF_SessionRun(session, NULL, &in, &x, 1, &out, &y, 1, NULL, 0, NULL, status);
  check(status);
  for (int64_t i = 0; i < TF_TensorElementCount(y); i++)
    printf("%.9g\n", ((float *)TF_TensorData(y))[i]);
  return 0;
}
