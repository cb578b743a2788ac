/* The body of a request from the inputs and parameters of Triton. */

#ifndef COS_BODY_HPP
#define COS_BODY_HPP

#include "json.hpp"
#include "triton.hpp"

namespace triton {

/// The order of members stays, because chat templates print tools.
using Json = nlohmann::ordered_json;

/// How an input stands in the body.
enum class Form {
    scalar,  ///< One value.
    list,    ///< An array of values.
    json,    ///< A text that is JSON.
};

/// An optional input, which may be a parameter of the request as well.
struct InputKind {
    const char* name;
    const char* type;  ///< As in the configuration of a model.
    Form form;
};

/// All inputs. Their names are members of the body (docs/requests.md), but for those of prompts and `request`.
const std::vector<InputKind>& input_kinds();

/// What a request asks for.
struct Asked {
    Json body;
    bool chat = false;
};

/// The parameter `endpoint` of a request, which has no input of this name. Empty if it is not given.
std::string endpoint_of(TRITONBACKEND_Request* request);

/// Reads the inputs and the other parameters of a request. An error names the input.
Asked read_body(TRITONBACKEND_Request* request, const std::string& endpoint);

}  // namespace triton

#endif  // COS_BODY_HPP
