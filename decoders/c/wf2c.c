/* wf2c IN OUT.h: write a .wf file as an array in C, with a sketch of its use. SPDX-License-Identifier: MIT */
#include "program.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* A name in C that is like the name of a file. */
static char *name_of(const char *path) {
    const char *last = strrchr(path, '/'), *start = last ? last + 1 : path;
    char *name = (char *)take(strlen(start) + 3);
    size_t i, size = 0;
    if (!isalpha((unsigned char)start[0])) name[size++] = 'f';
    for (i = 0; start[i] && start[i] != '.'; i++) {
        name[size++] = isalnum((unsigned char)start[i]) ? (char)tolower((unsigned char)start[i]) : '_';
    }
    name[size] = 0;
    return name;
}

/* A name in a comment, which it cannot end. */
static void print_name(FILE *to, const wf_tensor *tensor) {
    size_t i;
    for (i = 0; i < tensor->name_size; i++) {
        char c = tensor->name[i];
        fputc((unsigned char)c < 0x20 || c == '/' || c == '\\' ? '_' : c, to);
    }
}

static void print_tensors(FILE *to, const wf_file *file) {
    size_t i, axis;
    for (i = 0; i < wf_count(file); i++) {
        const wf_tensor *tensor = wf_at(file, i);
        fprintf(to, " * %4lu  ", (unsigned long)i);
        print_name(to, tensor);
        fprintf(to, "  %s [", wf_type_name(tensor->type));
        for (axis = 0; axis < tensor->axes; axis++) {
            fprintf(to, "%s%llu", axis ? ", " : "", (unsigned long long)tensor->shape[axis]);
        }
        fprintf(to, "]\n");
    }
}

static void print_use(FILE *to, const char *name) {
    fprintf(to,
            " *\n"
            " *     wf_source source = {%s, sizeof %s, NULL, NULL, 0};\n"
            " *     wf_allocator allocator = {allocate, release, NULL, 0};  // your own two functions\n"
            " *     wf_error error;\n"
            " *     wf_file *file;\n"
            " *     static float weights[...];  // the values of tensor 0\n"
            " *     if (wf_open(&file, &source, &allocator, 0, &error) != WF_OK) puts(error.message);\n"
            " *     else if (wf_decode(file, NULL, 0, WF_FLOAT32, weights, sizeof weights, &error) != WF_OK)\n"
            " *         puts(error.message);\n"
            " *     wf_close(file);\n"
            " */\n",
            name, name);
}

static void print_array(FILE *to, FILE *input, const char *name) {
    int byte;
    unsigned long at = 0;
    fprintf(to, "static const uint8_t %s[] = {", name);
    rewind(input);
    while ((byte = fgetc(input)) != EOF) fprintf(to, "%s%d,", at++ % 24 ? "" : "\n    ", byte);
    fprintf(to, "\n};\n");
}

int main(int count, char **arguments) {
    FILE *input;
    wf_file *file;
    output to;
    char *name, *c;
    if (count != 3) {
        fprintf(stderr, "Usage: wf2c IN.wf OUT.h\n");
        return 2;
    }
    file = open_input(arguments[1], &input);
    name = name_of(arguments[2]);
    open_output(&to, arguments[2]);
    fprintf(to.file, "/*\n * A compressed model; waterfill.h reads it. Its tensors:\n *\n");
    print_tensors(to.file, file);
    print_use(to.file, name);
    for (c = name; *c; c++) *c = (char)toupper((unsigned char)*c);
    fprintf(to.file, "#ifndef %s_H\n#define %s_H\n\n#include <stdint.h>\n\n", name, name);
    for (c = name; *c; c++) *c = (char)tolower((unsigned char)*c);
    print_array(to.file, input, name);
    fprintf(to.file, "\n#endif\n");
    if (ferror(to.file) || ferror(input)) fail(to.beside, "it cannot be written");
    close_output(&to);
    free(name);
    wf_close(file);
    fclose(input);
    return 0;
}
